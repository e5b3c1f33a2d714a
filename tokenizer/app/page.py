"""The page of the app, built with Gradio: its layout, and what its buttons do."""

from __future__ import annotations

import html
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizer.app.coding import CodingResult, SoundFiles, code_audio, show
from tokenizer.app.generating import AppGenerator, Wish
from tokenizer.errors import InputError, import_extra
from tokenizer.evaluation.demo import EXAMPLE
from tokenizer.evaluation.evaluate import as_table
from tokenizer.model.latent_tokenizer import LatentTokenizer

DEFAULT_KBPS = 16
MAX_GENERATED = 60
_NONE = "(none)"
# Of the page's functions: they are not offered to other programs.
_PRIVATE = {"api_visibility": "private"}


class Page:
    """What the buttons of the page do.

    Args:
        models: Tokenizers by the names that the page shows; all of them have a quantizer.
        generators: Generative models to offer.
        root: Folder for the files of the last call; files of earlier calls are removed.
    """

    def __init__(
        self, models: Mapping[str, LatentTokenizer], generators: Sequence[AppGenerator], root: Path
    ) -> None:
        if not models:
            raise InputError("The app needs a tokenizer.")
        for name, tokenizer in models.items():
            if tokenizer.quantizer is None:
                raise InputError(f"{name} has no quantizer: run `latok fit` first.")
        self.models, self.root = dict(models), root
        self.generators = {generator.name: generator for generator in generators}

    def folder(self) -> Path:
        """A new folder for the files of a call. Gradio has its own copies of earlier files."""
        for old in self.root.iterdir():
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.root))

    def rates(self, name: str) -> dict[str, Any]:
        """Properties of the slider that chooses the rate of a model."""
        tokenizer = self.models[name]
        kbps = [tokenizer.bitrate(n) / 1000 for n in range(1, tokenizer.num_codebooks + 1)]
        fitting = [n for n, rate in enumerate(kbps, 1) if rate <= DEFAULT_KBPS + 1e-6]
        return {
            "minimum": 1,
            "maximum": len(kbps),
            "value": max(fitting, default=1),
            "info": f"{kbps[0]:.3g} kbit/s and channel for the first, {kbps[-1]:.3g} for all",
        }

    def code(self, audio: str | None, name: str, n_codebooks: float | int) -> CodingResult:
        """Codes a file; errors as in `code_audio`."""
        if not audio:
            raise InputError("Drop an audio file first, or take the example clip.")
        return code_audio(self.models[name], audio, int(n_codebooks), self.folder())

    def generate(
        self,
        name: str,
        label: str,
        caption: str,
        audio: str | None,
        seconds: float | int,
        guidance: float | int,
        seed: float | int | None,
    ) -> SoundFiles:
        """Generates a clip."""
        wish = Wish(
            float(seconds),
            None if label in (None, "", _NONE) else label,
            caption.strip() or None if caption else None,
            Path(audio) if audio else None,
            float(guidance),
            int(seed or 0),
        )
        wave, rate = self.generators[name].generate(wish)
        return show(wave, rate, self.folder() / "generated")


@contextmanager
def errors_shown(audio: str | None) -> Iterator[None]:
    """Turns an error into one message on the page, which stays until it is closed."""
    import gradio as gr

    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if audio:
            # The user knows the file's name, not where Gradio has put it.
            message = message.replace(str(audio), Path(audio).name)
        # The page takes messages as HTML.
        raise gr.Error(html.escape(message), duration=None, print_exception=False) from error


def import_gradio() -> Any:
    """Gradio, which is optional."""
    return import_extra("gradio", "The app", "app")


def figures_table(coded: CodingResult) -> str:
    """The figures as a Markdown table."""
    rows = []
    for title, key in (("continuous latents", "continuous"), ("codes", "coded")):
        m = coded.figures[key]
        rows.append([title, f"{m['kbps']:.1f}", f"{m['si_sdr']:.2f}", f"{m['mel']:.3f}"])
    table = as_table(rows, ["", "kbit/s", "SI-SDR dB", "mel distance"])
    return "\n\n".join([table, *coded.notes])


def _sound(gr: Any, title: str) -> list[Any]:
    """A player, and a picture below it."""
    with gr.Column(min_width=240):
        return [
            gr.Audio(label=title, interactive=False, buttons=["download"], **_player(gr)),
            _picture(gr, f"Spectrogram: {title.lower()}", label=f"{title}: spectrogram"),
        ]


def _player(gr: Any) -> dict[str, Any]:
    """Native players: they need no decoding in the page, and keys work as everywhere."""
    return {"waveform_options": gr.WaveformOptions(show_recording_waveform=False)}


def _picture(gr: Any, text: str, **options: Any) -> Any:
    plain = {"show_label": False, "interactive": False, "format": "png", "buttons": ["fullscreen"]}
    return gr.Image(alt_text=text, **plain, **options)


def build_page(page: Page) -> Any:
    """The page as a ``gradio.Blocks``."""
    gr = import_gradio()
    first = next(iter(page.models))
    with gr.Blocks(
        title="Latent Tokenizer", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        gr.Markdown("# Latent Tokenizer\nOne encoder: continuous latents, and codes at any rate.")
        with gr.Row():
            audio = gr.Audio(
                label="Audio file",
                type="filepath",
                sources=["upload", "microphone"],
                editable=False,
                buttons=["download"],
                elem_id="input",
                **_player(gr),
            )
            with gr.Column():
                example = gr.Button("Take the example clip", elem_id="example")
                model = gr.Dropdown(
                    list(page.models),
                    value=first,
                    label="Model and quantizer",
                    visible=len(page.models) > 1,
                    elem_id="model",
                )
                books = gr.Slider(label="Codebooks", step=1, elem_id="rate", **page.rates(first))
                code = gr.Button("Encode and decode", variant="primary", elem_id="code")
        with gr.Row(elem_id="sounds"):
            outputs = [
                part for title in ("Original", "Continuous", "Codes") for part in _sound(gr, title)
            ]
        table = gr.Markdown(elem_id="figures")
        gr.Markdown("Codes: time to the right (channels one after another), codebooks upwards")
        codes = _picture(gr, "The codes", elem_id="codes")
        code_file = gr.File(label="Code file (.ltk)", interactive=False)
        if page.generators:
            _add_generation(gr, page, audio)

        def code_it(path: str | None, name: str, count: float) -> list[Any]:
            with errors_shown(path):
                coded = page.code(path, name, count)
            sounds = (coded.original, coded.continuous, coded.coded)
            files = [str(file) for sound in sounds for file in (sound.audio, sound.picture)]
            return [*files, figures_table(coded), str(coded.codes), str(coded.code_file)]

        example.click(lambda: str(EXAMPLE), outputs=audio, **_PRIVATE)
        model.change(lambda name: gr.Slider(**page.rates(name)), model, books, **_PRIVATE)
        shown = [*outputs, table, codes, code_file]
        code.click(code_it, [audio, model, books], shown, **_PRIVATE)
    return blocks


def _add_generation(gr: Any, page: Page, audio: Any) -> None:
    """The lower part of the page."""
    names = list(page.generators)
    first = page.generators[names[0]]

    def classes(generator: AppGenerator) -> dict[str, Any]:
        labels = [_NONE, *generator.labels]
        return {"choices": labels, "value": labels[-1]}

    gr.Markdown("## Generate")
    with gr.Row():
        with gr.Column(elem_id="generating"):
            run = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1)
            label = gr.Dropdown(label="Class", **classes(first))
            caption = gr.Textbox(label="Text", visible=first.takes_captions)
            with gr.Row():
                numbers = [
                    gr.Number(5, label="Seconds", minimum=0.1, maximum=MAX_GENERATED),
                    gr.Number(2, label="Guidance", minimum=0, maximum=20),
                    gr.Number(0, label="Seed", precision=0, minimum=0),
                ]
            continues = gr.Checkbox(label="Continue the audio file above")
            button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Column(elem_id="generated"):
            outputs = _sound(gr, "Generated")

    def choose(name: str) -> list[Any]:
        generator = page.generators[name]
        text = gr.Textbox(visible=generator.takes_captions)
        return [gr.Dropdown(**classes(generator)), text]

    def generate_it(
        name: str, label: str, caption: str, continues: bool, path: str | None, *numbers: float
    ) -> list[str]:
        with errors_shown(path):
            if continues and not path:
                raise InputError("Drop an audio file first: the generated clip continues it.")
            shown = page.generate(name, label, caption, path if continues else None, *numbers)
        return [str(shown.audio), str(shown.picture)]

    run.change(choose, run, [label, caption], **_PRIVATE)
    inputs = [run, label, caption, continues, audio, *numbers]
    button.click(generate_it, inputs, outputs, **_PRIVATE)
