"""The model card of a round's policy: what it is, how it was made, its scores, how to use it.

A card may be published: it names no folder of this machine, and texts from settings or people are
escaped.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCardData

from ipo_lightning.policy import Policy
from ipo_lightning.report.tables import interval, number, plus_minus
from ipo_lightning.storage.foreign_yaml import parsed

PRIVATE = ("paths", "hydra", "logger", "callbacks", "debug", "dry_run", "until", "push_to_hub")
"""Settings that do not belong to the policy."""
LOCAL = re.compile(r"(?<![\w./-])(?:file:/+|~/|(?:\.\./)+|/(?!/))[^\s,\]}'\"=]+")
"""A path of this machine within a text."""
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
SHIPPED = "ipo_lightning/shapes/pipeline"


class Licence(NamedTuple):
    """A licence as hubs describe it."""

    id: str
    name: str | None = None
    link: str | None = None


LICENCES = {
    r"(zai-org|thudm)/cogvideox-2b": Licence("apache-2.0"),
    r"(zai-org|thudm)/cogvideox(1\.5)?-5b": Licence(
        "other", "cogvideox", "https://huggingface.co/{base}/blob/main/LICENSE"
    ),
    r"wan-ai/wan2\.1-t2v-.*": Licence("apache-2.0"),
    rf"(.*/)?{re.escape(SHIPPED)}": Licence("apache-2.0"),
}
"""Pattern of a base model's hub id in lower case -> its licence."""


class Base(NamedTuple):
    """The base model."""

    name: str
    """Its usual name."""
    path: str
    """A folder or a hub id."""
    revision: str | None
    pipeline: str
    transformer: str
    """Classes of pipeline and transformer in diffusers."""

    @property
    def hub_id(self) -> str | None:
        """Its id on a hub; None for a folder of this machine."""
        local = Path(self.path).exists() or not HUB_ID.fullmatch(self.path)
        return None if local else self.path

    @property
    def licence(self) -> Licence:
        """The base model's licence; where it is unknown, a link to the model."""
        for pattern, known in LICENCES.items():
            if re.fullmatch(pattern, self.path.lower()):
                link = known.link and known.link.format(base=self.path)
                return known._replace(link=link)
        if self.hub_id is None:
            return Licence("unknown")
        return Licence("other", "base-model", f"https://huggingface.co/{self.hub_id}")


def base_of(policy: Policy) -> Base:
    """The base model of a policy."""
    return Base(policy.name, policy.path, policy.revision, *policy.diffusers_classes)


class Data(NamedTuple):
    """How many videos a round was trained or evaluated on."""

    round: int
    prompts: int
    videos: int


def model_card(
    *,
    name: str,
    base: Base,
    adapter: bool,
    lines: Sequence[Mapping[str, Any]],
    data: Sequence[Data],
    held_out: Data,
    settings: str,
    command: Sequence[str] = (),
) -> str:
    """The card, as Markdown with front matter for model hubs.

    Args:
        name: of the run.
        base: the base model.
        adapter: whether the policy is a LoRA over the base.
        lines: of rounds.jsonl, up to the round of this policy.
        data: the rounds' training data.
        held_out: the evaluation data.
        settings: the run's config.yaml.
        command: the run's command line, if it is known.
    """
    last, chosen = lines[-1], parsed(settings) or {}
    parts = [
        front_matter(base, adapter),
        f"# {plain(name)}, round {last['round']}",
        summary(base, adapter, chosen, last),
        "## Use",
        usage(base, adapter, chosen),
        "## How it was made",
        making(chosen, last, command),
        rounds(lines, data),
        "## Scores",
        scores(lines, held_out),
        "## Limits",
        limits(base),
        *(["## Settings", settings_shown(chosen)] if chosen else []),
    ]
    return "\n\n".join(parts) + "\n"


def merged_card(base: Base, file: str, backbone: Mapping[str, Any]) -> str:
    """The card of all weights into which a LoRA was merged, as Markdown.

    Args:
        file: the name of what was merged. backbone: the settings of the model.
    """
    chosen = {"backbone": backbone}
    origin = code(base.hub_id or base.name)
    parts = [
        front_matter(base, adapter=False),
        f"# {plain(base.name)} with {plain(file)}",
        f"All weights of {origin}; {code(file)} is merged into them."
        + (f" Before that, they started from {started(backbone)}." if started(backbone) else ""),
        "## Use",
        usage(base, False, chosen),
    ]
    return "\n\n".join(parts) + "\n"


# -------------------------------------------------------------------- parts


def summary(base: Base, adapter: bool, chosen: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """What the policy is, in a sentence, and its fingerprint."""
    what = "A LoRA over" if adapter else "All weights of"
    imported = (chosen.get("data") or {}).get("imported")
    origin = base.hub_id or base.name
    revision = f" at revision {code(base.revision)}" if base.revision else ""
    return (
        f"{what} {code(origin)}{revision}, trained by iterative preference optimisation on "
        f"{learnt_from(imported)}. Fingerprint: {code(last['policy'])}."
    )


def settings_shown(chosen: Mapping[str, Any]) -> str:
    """The policy's settings, as YAML."""
    return fenced(yaml.safe_dump(public(chosen), sort_keys=False, allow_unicode=True), "yaml")


def learnt_from(imported: Mapping[str, Any] | None) -> str:
    """The origin of the training videos and labels."""
    own = "videos of its own, labelled by a critic"
    if not imported:
        return own
    rounds = imported.get("rounds")
    file = code(Path(str(imported.get("path"))).name)
    others = f"videos and labels of others ({file})"
    return f"{others}, from round {rounds + 1} on {own}" if rounds else others


def front_matter(base: Base, adapter: bool) -> str:
    """The card's front matter, YAML between dashes."""
    licence = base.licence
    relation = "adapter" if adapter else "finetune"
    data = ModelCardData(
        base_model=base.hub_id,
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="diffusers",
        pipeline_tag="text-to-video",
        tags=["text-to-video", "preference-optimization", "ipo_lightning"]
        + (["lora"] if adapter else []),
        base_model_relation=base.hub_id and relation,
    )
    return f"---\n{data.to_yaml()}\n---"


def usage(base: Base, adapter: bool, chosen: Mapping[str, Any]) -> str:
    """A program that makes a video; ``policy`` is this card's folder, or its id on a hub."""
    rollout, backbone = chosen.get("rollout") or {}, chosen.get("backbone") or {}
    shipped = base.path.endswith(SHIPPED)
    origin = json.dumps(SHIPPED if shipped else base.hub_id or "folder/of/the/base/model")
    revision = f", revision={json.dumps(base.revision)}" if base.revision else ""
    dtype = "" if shipped else ", dtype=torch.bfloat16"  # the shipped one is tiny
    whole, merged = under(backbone) if adapter else ("policy", [])
    loaded = ", transformer=transformer" if whole else ""
    size = [f"{key}={int(backbone[key])}" for key in ("num_frames", "height", "width")
            if backbone.get(key)]  # fmt: skip
    asked = [f"num_inference_steps={int(rollout.get('steps') or 50)}",
             f"guidance_scale={float(rollout.get('guidance_scale') or 6)}", *size,
             *text_length(base, backbone)]  # fmt: skip
    lines = [
        *([] if shipped else ["import torch"]),
        f"from diffusers import {base.pipeline}{', ' + base.transformer if whole else ''}",
        "from diffusers.utils import export_to_video",
        "",
        *(
            [f"transformer = {base.transformer}.from_pretrained({json.dumps(whole)}{dtype})"]
            if whole
            else []
        ),
        f"pipeline = {base.pipeline}.from_pretrained(",
        f"    {origin}{revision}{loaded}{dtype}",
        ').to("cuda")',
        *(line for name in merged for line in merging(name)),
        *(['pipeline.load_lora_weights("policy")'] if adapter else []),
        "pipeline.text_encoder.to(pipeline.transformer.dtype)  # it may be stored in another",
        "video = pipeline(",
        f'    prompt="a prompt", {", ".join(asked)}',
        ").frames[0]",
        f'export_to_video(video, "video.mp4", fps={float(backbone.get("fps") or 8):g})',
    ]
    told = (
        f"Here `policy` is this folder, or the id of this repository. {_beside(shipped)} "
        "`export_to_video` needs imageio and imageio-ffmpeg."
    )
    return f"{told}\n\n{fenced(chr(10).join(lines), 'python')}"


def under(backbone: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """What the weights under an adapter began with: a transformer's folder, and merged LoRAs."""
    merged = [one for one in chain(backbone.get("start")) if one["merge"]]
    wholes = [place for place, one in enumerate(merged) if not is_lora(one)]
    loras = merged[wholes[-1] + 1 :] if wholes else merged
    whole = f"folder/of/{origin(merged[wholes[-1]])}" if wholes else None
    return whole, [f"folder/of/{origin(one)}" for one in loras]


def merging(folder: str) -> list[str]:
    """Lines that merge a LoRA into a pipeline's weights."""
    return [
        f"pipeline.load_lora_weights({json.dumps(folder)})",
        "pipeline.fuse_lora()",
        "pipeline.unload_lora_weights()",
    ]


def text_length(base: Base, backbone: Mapping[str, Any]) -> list[str]:
    """How many tokens a prompt has, where the pipeline's default is not the model's own."""
    if base.pipeline == "CogVideoXPipeline":
        return ["max_sequence_length=pipeline.transformer.config.max_text_seq_length"]
    given = backbone.get("text_length")
    return [f"max_sequence_length={int(given)}"] if given else []


def _beside(shipped: bool) -> str:
    if shipped:
        return f"`{SHIPPED}` is in a clone of ipo_lightning; run the program there."
    return (
        "`dtype` may be left out, for float32; with diffusers before 0.42 its name is "
        "`torch_dtype`."
    )


def making(chosen: Mapping[str, Any], last: Mapping[str, Any], command: Sequence[str]) -> str:
    """The loss, the critic, the held-out judge, and the command."""
    loss = chosen.get("loss") or {}
    values = {key: value for key, value in loss.items() if not key.startswith("_")}
    told = ", ".join(f"{key} {value}" for key, value in values.items())
    beta = (last.get("train") or {}).get("beta")
    found = f"; beta of this round: {number(beta)}" if loss.get("beta") == "auto" and beta else ""
    rows = {
        "started from": started(chosen.get("backbone") or {}),
        "loss": f"{target(loss)} ({told}){found}",
        "regularisation": ", ".join(
            f"{k} {v}" for k, v in (chosen.get("regularise") or {}).items()
        ),
        "reference": target(chosen.get("reference") or {}),
        "critic that labelled": target(chosen.get("critic") or {}),
        "held-out judge": target(chosen.get("eval_critic") or {}),
        "command": shlex.join(without_paths(word) for word in command),
    }
    return "\n".join(f"- {key}: {code(value)}" for key, value in rows.items() if value)


def started(backbone: Mapping[str, Any]) -> str:
    """What took the place of the base model's weights before the first round, the earliest first;
    empty where nothing did."""
    found = [f"{origin(one)} ({'merged' if one['merge'] else 'trained on'})" if is_lora(one)
             else origin(one) for one in chain(backbone.get("start"))]  # fmt: skip
    return ", then ".join(found)


def chain(start: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A start and what it began with, the earliest first."""
    return [*chain(start.get("before")), start] if start else []


def is_lora(start: Mapping[str, Any]) -> bool:
    """Whether a start is a LoRA's file."""
    return str(start["path"]).endswith(".safetensors")


def origin(start: Mapping[str, Any]) -> str:
    """A file or folder without its place on this machine: of a run with its name and round."""
    parts = [one for one in Path(str(start["path"])).parts if not one.endswith(".safetensors")]
    of_run = len(parts) >= 3 and parts[-1] == "policy"
    return "/".join(parts[-3:-1]) if of_run else Path(str(start["path"])).name


def target(node: Mapping[str, Any]) -> str:
    """The name of the class or function in a node of the settings."""
    return str(node.get("_target_", "")).rpartition(".")[2]


def rounds(lines: Sequence[Mapping[str, Any]], data: Sequence[Data]) -> str:
    """A table of each round's training data."""
    labels = {line["round"]: line.get("n_pairs") for line in lines}
    rows = [(one.round, one.prompts, one.videos, number(labels.get(one.round))) for one in data]
    return grid(("round", "prompts", "videos", "labels kept"), rows)


def scores(lines: Sequence[Mapping[str, Any]], held_out: Data) -> str:
    """A table of scores on held-out prompts by round, with 95 % intervals."""
    rows = [
        (
            line["round"] or "0, the base",
            plus_minus(line.get("score"), line.get("score_se")),
            plus_minus(line.get("eval_score"), line.get("eval_score_se")),
            interval(line.get("win_rate"), line.get("win_rate_ci")),
            *(number((line.get("gauges") or {}).get(name)) for name in gauges(lines)),
        )
        for line in lines
    ]
    head = ("round", "training critic", "held-out judge", "win rate over the base, 95 %")
    told = (
        f"On {held_out.prompts} prompts that were not trained on, {held_out.videos} videos in all, "
        "with the same noise in each round. Scores are given with standard errors over prompts."
    )
    return f"{told}\n\n{grid((*head, *gauges(lines)), rows)}"


def gauges(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the gauges."""
    return sorted({name for line in lines for name in line.get("gauges") or {}})


def limits(base: Base) -> str:
    """What the scores do not say, and the licence."""
    licence = base.licence
    terms = {
        "unknown": "The base model's licence applies to these weights as well; the base model was "
        "in a local folder, and its licence is not known.",
        "other": f"The base model's own licence applies to these weights as well: {licence.link}.",
    }.get(licence.id, f"The base model's licence ({licence.id}) applies to these weights as well.")
    return (
        "- The policy was trained to please one critic, and may exploit its weaknesses. Look at "
        "motion and drift together with the scores.\n"
        "- The intervals are over the held-out prompts of this run, with one training seed.\n"
        "- The limits of the base model apply to this one too; nothing was done about harmful "
        f"prompts.\n- {terms}"
    )


# -------------------------------------------------------------------- what may be shown


def public(value: Any) -> Any:
    """Settings without those in `PRIVATE` and without paths of this machine."""
    if isinstance(value, Mapping):
        return {without_paths(str(k)): public(v) for k, v in value.items() if k not in PRIVATE}
    if isinstance(value, list):
        return [public(one) for one in value]
    return without_paths(value) if isinstance(value, str) else value


def without_paths(text: str) -> str:
    """A text in which each path of this machine is cut to its last part."""
    return LOCAL.sub(lambda match: Path(match[0]).name or ".", text)


def plain(text: object) -> str:
    """A text on one line, escaped for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~$&])", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """A text on one line, as inline code."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def fenced(text: str, language: str) -> str:
    """A code block, whose fence is longer than any within the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def grid(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [[plain(name) for name in head], ["---"] * len(head)]
    lines += [[plain(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
