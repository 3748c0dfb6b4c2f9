"""Where the trainings of one fit keep their checkpoints, so that none goes on from another fit's."""

from dataclasses import replace
from pathlib import Path

from recsys.config import RecommenderConfig
from recsys.schema import Tables, fingerprint


def with_own_checkpoints(config: RecommenderConfig, tables: Tables, phase: str) -> RecommenderConfig:
    """The same, with a checkpoint folder for this phase of a fit of these settings and tables alone.

    A training that was interrupted goes on in the same folder when the same fit is asked for again.
    """
    training = config.training
    if training.checkpoint_folder is None:
        return config
    learns = replace(config, progress=True, training=replace(training, checkpoint_folder=None, log_folder=None))
    folder = Path(training.checkpoint_folder) / f"{phase}-{fingerprint(tables, learns)[:12]}"
    return replace(config, training=replace(training, checkpoint_folder=str(folder)))
