"""Settings of short training runs, and a way to interrupt them."""

from tokenizer.training import loop as loop_module
from tokenizer.training.loop import LoopConfig

LOOP = LoopConfig(
    steps=12,
    batch_size=2,
    crop_seconds=0.25,
    learning_rate=1e-3,
    warmup_steps=4,
    log_every=3,
    validate_every=100,
    num_workers=0,
)


def interrupt_at(monkeypatch, step: int) -> None:
    """Makes the next run raise, as a kill would, after a checkpoint at ``step``."""
    real, saved = loop_module.save_checkpoint, []

    def save(folder, state, config):
        real(folder, state, config)
        saved.append(state.step)
        if state.step >= step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "save_checkpoint", save)
