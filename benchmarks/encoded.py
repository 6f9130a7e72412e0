"""What candidates of a server cost in learning: their latents went through an mp4 file and the VAE.

python benchmarks/encoded.py --outputs outputs/encoded --seeds 1 2        some minutes a run

A run a seed on the embedded world, three rounds of the default, whose candidates are the plain ones
with latents that are the VAE's encoding of their own decoded videos, as those of `rollout=served`
with lossless files are. Compare with plain runs of the same seeds (`python train.py seed=1
evaluation.choice_n=0`). What is finished is not done again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from hydra import compose, initialize_config_dir  # noqa: E402

from app import assembly  # noqa: E402
from app.entry import CONF, register_resolvers  # noqa: E402
from ipo_lightning.parallel.computing import Calls  # noqa: E402
from ipo_lightning.parallel.workers import Workers  # noqa: E402
from ipo_lightning.report.tables import table  # noqa: E402
from ipo_lightning.rounds.served import encoded_by  # noqa: E402
from ipo_lightning.sampling import Made, PromptSeeds, Rendered, Sampler  # noqa: E402
from ipo_lightning.storage.store import fingerprint  # noqa: E402
from train import train  # noqa: E402

ERRORS: list[float] = []
"""Root mean square difference of a prompt's latents, in their standard deviation."""


class Encoding(Sampler):
    """Samples as `Sampler` does, and replaces the latents by the VAE's encoding of the videos."""

    def independent(self) -> Sampler:
        """Policies are measured as ever."""
        return Sampler(self.policy, self.store, self.sampling.independent(), self.lossless)

    def key(self, policy_fingerprint: str, item: PromptSeeds, precision: str) -> str:
        """Not that of the plain ones."""
        return fingerprint(["encoded", super().key(policy_fingerprint, item, precision)])

    def _make(self, key: str, item: PromptSeeds, calls: Calls, workers: Workers) -> Made:
        made = super()._make(key, item, calls, workers)
        clips, own = made.rendered.clips, made.rendered.latents["latents"]
        latents = calls.start(encoded_by, [clip.frames for clip in clips])
        ERRORS.append(float((latents - own).pow(2).mean().sqrt() / own.std()))
        return made._replace(rendered=Rendered({"latents": latents}, clips))


def encoding_sampler(cfg: Any, policy: Any, store: Any, run: Any) -> Sampler:
    """In place of `app.assembly.make_sampler`."""
    plain = assembly.make(Sampler, cfg, policy, store, assembly.make_sampling(cfg))
    return Encoding(plain.policy, plain.store, plain.sampling, plain.lossless)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs/encoded"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    assembly.make_sampler = encoding_sampler
    register_resolvers()
    rows = []
    for seed in chosen.seeds:
        words = [f"seed={seed}", "evaluation.choice_n=0", f"name=encoded-{seed}", "logger=none",
                 f"paths.outputs={chosen.outputs.resolve()}", "callbacks.videos=null"]  # fmt: skip
        with initialize_config_dir(str(CONF), version_base="1.3"):
            line = train(compose("train", words)) or {}
        gain = line.get("gain") or {}
        rows.append({"seed": seed, "gain": gain.get("mean"), "pairs": line.get("n_pairs"),
                     "real error": (line.get("gauges") or {}).get("real_error")})  # fmt: skip
    print(table(rows, list(rows[0])))
    if ERRORS:
        print(f"latents: {sum(ERRORS) / len(ERRORS):.3f} of their standard deviation apart")


if __name__ == "__main__":
    main()
