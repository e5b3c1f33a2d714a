"""The network of `ImplicitNeuralQuantizer`, and its training, which can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.quantizers.kmeans import half_squared_norms, largest_in_rows
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource
from tokenizer.saving import save_tensors

# All that is trained, with its axes after the first, which is the codebook's number: D dimensions,
# S entries, H hidden units, L blocks.
NETWORK: dict[str, str] = {
    "codebooks": "SD",
    "keys": "SD",
    "offsets": "DD",
    "entry_in": "DH",
    "context_in": "DH",
    "bias_in": "H",
    "block_in": "LHH",
    "block_bias": "LH",
    "block_out": "LHH",
    "out": "HD",
}
# Of the plain residual quantizer that training starts from.
_REFINED = 4
_CHECKPOINT_SECONDS = 60.0
_WARMUP_STEPS = 100
_GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long; see `ImplicitNeuralQuantizer`."""

    codebook_size: int
    num_codebooks: int
    hidden: int
    depth: int
    candidates: int
    steps: int
    batch_size: int
    learning_rate: float


def network(
    w: dict[str, Tensor], entry: Float[Tensor, "M D"], estimate: Float[Tensor, "M D"]
) -> Float[Tensor, "M D"]:
    """What an entry becomes after an estimate: itself plus a residual network of both."""
    return entry + _deviation(w, entry @ w["entry_in"] + _context(w, estimate))


class Stage:
    """What the search needs of a codebook."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.bias = -half_squared_norms(weights["keys"])
        # What the network makes of each entry before the estimate comes in.
        self.entries_in = weights["codebooks"] @ weights["entry_in"]

    def candidates(
        self, residual: Float[Tensor, "M D"], estimate: Float[Tensor, "M D"], count: int
    ) -> Int[Tensor, "M count"]:
        """The most promising entries for each residual, by the cheap rule."""
        u = residual - estimate @ self.weights["offsets"]
        return largest_in_rows(torch.addmm(self.bias, u, self.weights["keys"].T), count)

    def try_entries(
        self, codes: Int[Tensor, "M A"], estimate: Float[Tensor, "M D"]
    ) -> Float[Tensor, "M A D"]:
        """`network` for several entries after each estimate, without doing anything twice."""
        w, (rows, count) = self.weights, codes.shape
        picked = self.entries_in.index_select(0, codes.flatten()).view(rows, count, -1)
        h = (picked + _context(w, estimate)[:, None]).flatten(0, 1)
        added = w["codebooks"].index_select(0, codes.flatten()) + _deviation(w, h)
        return added.view(rows, count, -1)


def _context(w: dict[str, Tensor], estimate: Tensor) -> Tensor:
    return torch.addmm(w["bias_in"], estimate, w["context_in"])


def _deviation(w: dict[str, Tensor], h: Tensor) -> Tensor:
    for inner, bias, outer in zip(w["block_in"], w["block_bias"], w["block_out"], strict=True):
        h = torch.addmm(h, functional.relu(torch.addmm(bias, h, inner)), outer)
    return h @ w["out"]


def train(
    frames: Float[Tensor, "M D"],
    plan: Plan,
    generator: torch.Generator,
    checkpoint: Path | None,
    *,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Trains all codebooks together; returns tensors as `NETWORK` has them.

    Every stage's error counts, in relation to the error of plain residual quantization with as many
    codebooks: otherwise the first ones, with the largest, would decide.
    """
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    state = _State.start(frames, plan, seed, checkpoint, progress=progress)
    saved = time.monotonic()
    bar = tqdm(
        total=plan.steps, initial=state.step, desc="train", unit="step", disable=not progress
    )
    while state.step < plan.steps:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
        chosen = torch.randint(len(frames), (plan.batch_size,), generator=draw)
        error = _step(state, frames[chosen.to(frames.device)], plan)
        state.step += 1
        bar.update()
        if state.step % 50 == 0:
            bar.set_postfix(relative_error=f"{error:.4f}")
        if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            state.save(checkpoint)
            saved = time.monotonic()
    bar.close()
    if checkpoint is not None:
        state.save(checkpoint)
    return {name: value.detach() for name, value in state.weights.items()}


@torch.enable_grad()
def _step(state: _State, x: Tensor, plan: Plan) -> float:
    """One step of Adam; returns the last codebook's error over that of plain quantization."""
    # Taken apart once: to index the stacked tensors would make a gradient of all for each.
    parts = {name: value.unbind(0) for name, value in state.weights.items()}
    estimate = torch.zeros_like(x)
    losses = []
    rule = []
    for k in range(plan.num_codebooks):
        w = {name: stacked[k] for name, stacked in parts.items()}
        before = estimate.detach()
        code = _choose(w, x, before, plan.candidates)
        entry = w["codebooks"].index_select(0, code)
        estimate = estimate + network(w, entry, estimate)
        losses.append((x - estimate).square().mean())
        guess = w["keys"].index_select(0, code) + before @ w["offsets"]
        rule.append((x - before - guess).square().mean())
    relative = torch.stack(losses) / state.plain
    loss = relative.mean() + (torch.stack(rule) / state.plain).mean()
    state.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.weights.values(), _GRADIENT_CLIP)
    for group in state.optimizer.param_groups:
        group["lr"] = _learning_rate(state.step, plan)
    state.optimizer.step()
    return float(relative[-1].detach())


@torch.no_grad()
def _choose(w: dict[str, Tensor], x: Tensor, estimate: Tensor, candidates: int) -> Tensor:
    """The best of the candidates for each vector."""
    stage, residual = Stage(w), x - estimate
    codes = stage.candidates(residual, estimate, candidates)
    errors = (residual[:, None] - stage.try_entries(codes, estimate)).square().sum(-1)
    return codes.gather(1, errors.argmin(1, keepdim=True))[:, 0]


def _learning_rate(step: int, plan: Plan) -> float:
    warmup = min(_WARMUP_STEPS, plan.steps // 10 + 1)
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(plan.steps - warmup, 1)
    return plan.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


class _State:
    """Weights, optimizer and step, and how they are kept on disk: one file, no pickles."""

    def __init__(
        self, weights: dict[str, Tensor], plain: Tensor, identity: dict[str, Any], rate: float
    ) -> None:
        self.weights = {name: value.requires_grad_() for name, value in weights.items()}
        self.plain, self.identity, self.step = plain, identity, 0
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr=rate)

    @classmethod
    def start(
        cls, frames: Tensor, plan: Plan, seed: int, checkpoint: Path | None, *, progress: bool
    ) -> _State:
        """A new state, or the one that the checkpoint holds."""
        digest = hashlib.sha256(frames.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
        identity = {**asdict(plan), "seed": seed, "latents": digest}
        if checkpoint is not None and checkpoint.exists():
            return cls._load(checkpoint, plan, identity, frames.device)
        weights, plain = _plain_quantizer(frames, plan, seed, progress=progress)
        return cls(weights, plain, identity, plan.learning_rate)

    @classmethod
    def _load(
        cls, path: Path, plan: Plan, identity: dict[str, Any], device: torch.device
    ) -> _State:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                stored = json.loads(metadata["identity"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError) as error:
            raise InputError(f"{path} is no checkpoint of a quantizer ({error}).") from None
        changed = {key: stored.get(key) for key in identity if stored.get(key) != identity[key]}
        if changed:
            current = {key: identity[key] for key in changed}
            raise InputError(
                f"{path} was trained with {changed}, not {current}. Use the same options and "
                "latents, or delete it."
            )
        weights = {name: tensors[f"weights.{name}"] for name in NETWORK}
        state = cls(weights, tensors["plain"], identity, plan.learning_rate)
        state.step = int(metadata["step"])
        moments = {
            index: {key: tensors[f"adam.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(NETWORK)
        }
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return state

    def save(self, path: Path) -> None:
        """Writes the file, as a whole or not at all."""
        tensors = {f"weights.{name}": value for name, value in self.weights.items()}
        tensors["plain"] = self.plain
        moments = self.optimizer.state_dict()["state"]
        for index, name in enumerate(NETWORK):
            for key, value in moments.get(index, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"step": str(self.step), "identity": json.dumps(self.identity)}
        save_tensors(path, tensors, metadata)


def _plain_quantizer(
    frames: Tensor, plan: Plan, seed: int, *, progress: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Weights that make a plain residual quantizer, and its mean squared errors ``[K]``."""
    generator = torch.Generator().manual_seed(seed)
    dim = frames.shape[1]
    plain = ResidualVectorQuantizer(
        dim, plan.num_codebooks, plan.codebook_size, max_points=len(frames), refinements=_REFINED
    ).to(frames.device)
    plain.fit(TensorSource(frames), generator=generator, progress=progress)
    sizes = {"D": dim, "S": plan.codebook_size, "H": plan.hidden, "L": plan.depth}
    weights = {}
    for name, axes in NETWORK.items():
        shape = [sizes[axis] for axis in axes]
        value = torch.zeros(plan.num_codebooks, *shape)
        # What goes out of the network starts at zero, what goes in at random.
        if name in ("entry_in", "context_in", "block_in"):
            value.normal_(std=shape[-2] ** -0.5, generator=generator)
        weights[name] = value.to(frames.device)
    weights["codebooks"].copy_(plain.codebooks)
    weights["keys"].copy_(plain.codebooks)
    noise = plain.noise_levels.square() * frames.square().mean()
    return weights, noise.clamp(min=1e-8)
