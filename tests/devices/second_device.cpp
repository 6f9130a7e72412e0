// A second device for tests, "gpux" (PrivateUse1): its memory is the CPU's, and it is as strict as CUDA.
// It refuses tensors of different devices in one operation and generators of the CPU, has CUDA's
// autocast lists, and counts what makes a host wait: values that are read, and picks by a mask.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

using at::Tensor;
using c10::IntArrayRef;

namespace {

const auto kDevice = c10::DeviceType::PrivateUse1;
const c10::Device kFirst{kDevice, 0};
constexpr int64_t kLarge = 1024;  // elements from which float64 is no mere scalar

std::mutex counting;
std::map<std::string, int64_t> counts;

void count(const std::string& name) {
  std::lock_guard<std::mutex> lock(counting);
  counts[name]++;
}

// ------------------------------------------------------------------ memory, streams, generators

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::PrivateUse1;
  Guard() {}
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return kFirst; }
  c10::Device getDevice() const override { return kFirst; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kFirst); }
  c10::Stream getDefaultStream(c10::Device d) const override { return getStream(d); }
  c10::Stream getNewStream(c10::Device d, int) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(kFirst); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

void release(void* pointer) { free(pointer); }

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* found = nullptr;
    if (bytes && posix_memalign(&found, 64, bytes)) throw std::bad_alloc();
    return {found, found, &release, kFirst};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { memcpy(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(kDevice, &allocator);

struct Generator final : at::CPUGeneratorImpl {
  Generator() : at::CPUGeneratorImpl(0) {
    device_ = kFirst;
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

at::Generator& default_generator() {
  static at::Generator found = at::make_generator<Generator>();
  return found;
}

// What the device really draws from, since the CPU computes: never the CPU's own generator.
at::Generator& drawn_from() {
  static at::Generator found = at::make_generator<at::CPUGeneratorImpl>(0);
  return found;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return kFirst; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto data = allocator.allocate(bytes);
    auto* held = storage.unsafeGetStorageImpl();
    if (auto kept = std::min<size_t>(held->nbytes(), bytes)) memcpy(data.get(), held->data_ptr().get(), kept);
    held->set_data_ptr_noswap(std::move(data));
    held->set_nbytes(bytes);
  }
};
Hooks hooks;

// ------------------------------------------------------------------ operations of the device's own

// The same memory, seen as a CPU tensor.
Tensor on_cpu(const Tensor& one) {
  at::DataPtr data(one.storage().mutable_data(), c10::Device(at::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), one.storage().nbytes(), std::move(data), nullptr, false);
  const c10::DispatchKeySet keys(c10::DispatchKey::CPU);
  auto seen = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, one.dtype());
  seen.unsafeGetTensorImpl()->set_sizes_and_strides(one.sizes(), one.strides(), one.storage_offset());
  if (one.is_conj()) seen._set_conj(true);
  if (one.is_neg()) seen._set_neg(true);
  return seen;
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator, keys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  const bool leaves = from.device().type() == kDevice, arrives = to.device().type() == kDevice;
  Tensor target = arrives ? on_cpu(to) : to;
  target.copy_(leaves ? on_cpu(from) : from);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar value_of(const Tensor& one) {
  count("values read");
  return at::native::_local_scalar_dense_cpu(on_cpu(one));
}

const Tensor& resize(const Tensor& one, IntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto bytes = (one.storage_offset() + c10::multiply_integers(size)) * one.itemsize();
  if (static_cast<int64_t>(one.storage().nbytes()) < bytes) hooks.resizePrivateUse1Bytes(one.storage(), bytes);
  one.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return one;
}

Tensor& set_strided(Tensor& one, c10::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* held = one.unsafeGetTensorImpl();
  held->set_storage_keep_dtype(std::move(storage));
  const auto contiguous = c10::contiguous_strides(size);
  held->set_sizes_and_strides(size, stride.empty() ? IntArrayRef(contiguous) : stride, offset);
  return one;
}

Tensor& set_storage(Tensor& one, c10::Storage storage) {
  const int64_t length = storage.nbytes() / one.itemsize();
  return set_strided(one, std::move(storage), 0, {length}, {1});
}

Tensor& set_tensor(Tensor& one, const Tensor& other) {
  return set_strided(one, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                   int64_t groups) {
  TORCH_CHECK(input.device() == weight.device(), "MIXED: convolution: ", input.device(), ", ", weight.device());
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "convolution: ", input.scalar_type(), " input and ",
              weight.scalar_type(), " weight");
  std::optional<Tensor> own;
  if (bias.has_value() && bias->defined()) own = on_cpu(*bias);
  return at::convolution(on_cpu(input.contiguous()), on_cpu(weight.contiguous()), own, stride, padding, dilation,
                         transposed, output_padding, groups)
      .to(input.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& input,
                                                        const Tensor& weight, IntArrayRef stride,
                                                        IntArrayRef padding, IntArrayRef dilation, bool transposed,
                                                        IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> wanted) {
  std::vector<int64_t> bias{gradient.size(1)};
  auto [first, second, third] = at::convolution_backward(
      on_cpu(gradient.contiguous()), on_cpu(input.contiguous()), on_cpu(weight.contiguous()),
      at::OptionalIntArrayRef(bias), stride, padding, dilation, transposed, output_padding, groups, wanted);
  auto back = [&](const Tensor& one) { return one.defined() ? one.to(input.device()) : one; };
  return {back(first), back(second), back(third)};
}

// ------------------------------------------------------------------ all other operations

const std::set<std::string> kMayMix = {"aten::index", "aten::_index_put_impl_", "aten::index_put_",
                                       "aten::index_put", "aten::copy_"};
const std::set<std::string> kWait = {"aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
                                     "aten::_unique2", "aten::unique_dim"};

void refuse_mixed(const std::string& name, const std::vector<Tensor>& tensors) {
  bool ours = false;
  std::string others;
  for (const auto& one : tensors) {
    if (!one.defined()) continue;
    if (one.device().type() == kDevice) {
      ours = true;
      if (one.scalar_type() == at::kDouble && one.numel() > kLarge) count("float64: " + name);
    } else if (one.dim() > 0) {
      others += c10::str(" ", one.scalar_type(), one.sizes());
    }
  }
  TORCH_CHECK(!ours || others.empty() || kMayMix.count(name), "MIXED: ", name,
              ": expected all tensors to be on the same device; on the CPU:", others);
}

void fallback(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const auto& name = schema.operator_name().name;
  std::vector<Tensor> tensors;
  const auto given = schema.arguments().size();
  for (size_t place = 0; place < given; ++place) {
    auto& one = (*stack)[stack->size() - given + place];
    if (one.isTensor()) tensors.push_back(one.toTensor());
    if (one.isTensorList()) for (const auto& each : one.toTensorVector()) tensors.push_back(each);
    if (one.isOptionalTensorList())
      for (const auto& each : one.toOptionalTensorVector())
        if (each.has_value()) tensors.push_back(*each);
    if (one.isGenerator()) {
      const auto generator = one.toGenerator();
      TORCH_CHECK(!generator.defined() || generator.device().type() == kDevice, "MIXED: ", name,
                  ": expected a generator of the device, not of ", generator.device());
    }
    if (schema.arguments()[place].name() == "generator") one = drawn_from();
  }
  refuse_mixed(name, tensors);
  count("operations");
  if (kWait.count(name)) count("values read");
  at::native::cpu_fallback(operation, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &value_of);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_strided);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace

// ------------------------------------------------------------------ autocast, as CUDA has it

using namespace at;
using namespace at::autocast;
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_BY_DEFAULT(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_BY_DEFAULT)
  AT_FORALL_PROMOTE(WIDEST)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
}

// ------------------------------------------------------------------ what Python calls

extern "C" {
void device_init() { at::RegisterPrivateUse1HooksInterface(&hooks); }

void device_seed(unsigned long seed) {
  std::lock_guard<std::mutex> lock(drawn_from().mutex());
  drawn_from().set_current_seed(seed ^ 0x5eed);  // as on CUDA, other draws than the CPU's
}

// "NAME=COUNT" by lines, and start anew.
const char* device_counts() {
  static std::string told;
  std::lock_guard<std::mutex> lock(counting);
  std::ostringstream lines;
  for (const auto& [name, number] : counts) lines << name << "=" << number << "\n";
  counts.clear();
  told = lines.str();
  return told.c_str();
}
}
