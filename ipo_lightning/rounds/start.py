"""The start of a round: from the policy of the round before, or from where guards went back to."""

from ipo_lightning.guards import Guards
from ipo_lightning.rounds.stage import Round, RoundStage


class StartStage(RoundStage):
    """Asks the guards where a round starts, once: ``start.json``, where it is not the round before.

    Args:
        guards: see `Guards.start_after`.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards

    def done(self, round: Round) -> bool:
        """Whether it is decided, or the round is begun: other guards do not change it any more."""
        folder = round.folder
        if folder.start_file.name in folder.manifest().files or folder.start_file.exists():
            return folder.intact(folder.start_file)
        return folder.candidates_file.exists()

    def run(self, round: Round) -> None:
        """Decide by the lines of the finished rounds; the line of a finished one says it itself."""
        lines = [line for line in round.run.lines() if line["round"] < round.number]
        own = round.run.line(round.number)
        start = self.guards.start_after(lines) if own is None else own.get("start")
        if start is not None and round.workers.leads:
            round.folder.write_object(round.folder.start_file, start)
