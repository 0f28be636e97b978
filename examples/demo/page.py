"""Build the page: four tabs over one model, its queue, and its style, which loads nothing from other hosts."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from examples.demo.attention import attention_weights, read_row, render_masks, render_weights, with_eager_attention
from examples.demo.encode import compare_sentences, render_similarities
from examples.demo.fills import TOKEN_STYLE
from examples.demo.generate import Runs, show_stream, stream_continuation
from examples.demo.infill import fill_text, render_filled
from examples.demo.limits import LIMITS, shows_problems
from modeling_magnet.configuration_magnet import MODES

FOLDER = Path(__file__).parent
# Concurrent calls of the model, and visitors who may wait in the queue.
AT_A_TIME = 4
WAITING = 64

STORY = (
    "Nora went to the market on Sunday.[blank] Soon it rained hard, but she stayed dry. Nora was proud of that day."
)
LINES = """Anna bought a kite at the market on Monday.
On Monday, at the market, Anna bought a toy for windy days.
Nora found a camera at the station at night.
At the station, Nora found something to take pictures with at night."""
PROMPT = "Clara went to the market on Sunday."
BLANKED = "She bought a[blank] and stayed dry."


class Handlers:
    """Handle the buttons of the page."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.eager = with_eager_attention(model)
        self.runs = Runs()

    def fill(self, text: object, length: object, tokens: object, answers: object) -> str:
        """Return candidates for the blanks of a text."""
        filled = fill_text(self.model, text, length=None if length == "automatic" else tokens, answers=answers)
        return render_filled(filled)

    def compare(self, text: object) -> str:
        """Return the similarities of lines."""
        return render_similarities(compare_sentences(self.model, text))

    def write(self, prompt: object, tokens: object, temperature: object, request: gr.Request) -> Iterator[Any]:
        """Yield a continuation as it grows."""
        stop = self.runs.begin(str(request.session_hash))
        yield from show_stream(
            stream_continuation(self.model, prompt, new_tokens=tokens, temperature=temperature, stop=stop)
        )

    def stop(self, request: gr.Request) -> None:
        """End the continuation of a visitor who stops it or leaves."""
        self.runs.stop(str(request.session_hash))

    def attend(self, text: object, mode: object, layer: object, head: object) -> str:
        """Return masks and one head's weights."""
        row = read_row(self.model, text)
        weights = attention_weights(self.eager, row, mode=mode, layer=layer, head=head)
        caption = f"Attention of layer {layer}, head {head}, {mode} mode: each row sums to 1"
        return (
            f"<h2>What the head looks at</h2>{render_weights(row, weights, caption=caption)}"
            f"<h2>Who may attend to whom</h2>{render_masks(row)}"
        )


def build_page(model: Any, *, described: str) -> gr.Blocks:
    """Build the page of a model and set its queue; launch it with `launch_options`."""
    handlers = Handlers(model)
    with gr.Blocks(title="MAGNET", analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>MAGNET: one decoder that infills, encodes and generates</h1><p>{html.escape(described)}</p>",
            elem_classes="answer",
        )
        with gr.Tabs():
            with gr.Tab("Infill", id="infill"):
                _infill_tab(handlers)
            with gr.Tab("Encode", id="encode"):
                _encode_tab(handlers)
            with gr.Tab("Generate", id="generate"):
                _generate_tab(handlers)
            with gr.Tab("Attention", id="attention"):
                _attention_tab(handlers)
        page.unload(handlers.stop)
    return page.queue(max_size=WAITING, default_concurrency_limit=AT_A_TIME)


def launch_options() -> dict[str, Any]:
    """Return style and behavior of the page: system fonts, its own style sheet and script."""
    fonts = ["system-ui", "sans-serif"]
    # The default gray of small print has too little contrast.
    small = {"body_text_color_subdued": "*neutral_600", "block_info_text_color": "*neutral_600"}
    small |= {f"{name}_dark": "*neutral_300" for name in small}
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return {
        "theme": gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]).set(**small),
        "css": TOKEN_STYLE + (FOLDER / "style.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
        "footer_links": [],
        "show_error": False,
        "enable_monitoring": False,
        "ssr_mode": False,
    }


def _answer(name: str) -> gr.HTML:
    """Return the element that shows a tab's answer."""
    return gr.HTML(elem_id=name, elem_classes="answer")


def _infill_tab(handlers: Handlers) -> None:
    text = gr.Textbox(
        STORY,
        lines=4,
        label="Text with blanks",
        info="Write [blank] where something is missing, or select words and press Alt+B. Shift+Enter fills.",
        elem_id="infill-text",
        max_length=LIMITS.characters,
    )
    with gr.Row():
        blank = gr.Button("Blank the selection", elem_id="infill-blank")
        fill = gr.Button("Fill the blanks", variant="primary", elem_id="infill-fill")
    with gr.Row():
        length = gr.Radio(["automatic", "set"], value="automatic", label="Length of a fill", elem_id="infill-length")
        tokens = gr.Slider(1, LIMITS.fill_tokens, 8, step=1, label="Tokens, if set", elem_id="infill-tokens")
        answers = gr.Slider(1, LIMITS.answers, 3, step=1, label="Answers", elem_id="infill-answers")
    shown = _answer("infill-answer")
    blank.click(None, text, text, js="(text) => window.magnetBlank(text)", api_visibility="private")
    given = [text, length, tokens, answers]
    gr.on([fill.click, text.submit], shows_problems(handlers.fill), given, shown, api_name="infill")


def _encode_tab(handlers: Handlers) -> None:
    text = gr.Textbox(
        LINES,
        lines=5,
        max_lines=LIMITS.lines + 1,
        label="Texts, one a line",
        info=f"2 to {LIMITS.lines} lines. Shift+Enter compares.",
        elem_id="encode-text",
        max_length=LIMITS.characters,
    )
    compare = gr.Button("Compare", variant="primary", elem_id="encode-compare")
    shown = _answer("encode-answer")
    gr.on([compare.click, text.submit], shows_problems(handlers.compare), text, shown, api_name="encode")


def _generate_tab(handlers: Handlers) -> None:
    prompt = gr.Textbox(
        PROMPT,
        lines=3,
        label="Prompt",
        info="The model goes on from here, left to right. Shift+Enter begins.",
        elem_id="generate-prompt",
        max_length=LIMITS.characters,
    )
    with gr.Row():
        tokens = gr.Slider(1, LIMITS.new_tokens, 60, step=1, label="New tokens", elem_id="generate-tokens")
        temperature = gr.Slider(
            0, 2, 0, step=0.1, label="Temperature", info="0: the likeliest token", elem_id="generate-temperature"
        )
    with gr.Row():
        write = gr.Button("Generate", variant="primary", elem_id="generate-write")
        stop = gr.Button("Stop", variant="stop", elem_id="generate-stop")
    meters, shown = _answer("generate-meters"), _answer("generate-answer")
    given, asked = [prompt, tokens, temperature], [write.click, prompt.submit]
    gr.on(asked, handlers.write, given, [shown, meters], show_progress="hidden", api_name="generate")
    # Not queued, because it would wait for the call that it stops.
    stop.click(handlers.stop, queue=False, api_visibility="private")


def _attention_tab(handlers: Handlers) -> None:
    config = handlers.model.config
    text = gr.Textbox(
        BLANKED,
        lines=2,
        label="Text, with or without blanks",
        info=f"{LIMITS.grid_tokens} tokens at most; each [blank] is filled. Shift+Enter shows.",
        elem_id="attention-text",
        max_length=LIMITS.characters,
    )
    with gr.Row():
        mode = gr.Radio(list(MODES), value="infill", label="Mode", elem_id="attention-mode")
        layer = gr.Slider(1, config.num_hidden_layers, 1, step=1, label="Layer", elem_id="attention-layer")
        head = gr.Slider(1, config.num_attention_heads, 1, step=1, label="Head", elem_id="attention-head")
    show = gr.Button("Show attention", variant="primary", elem_id="attention-show")
    shown = _answer("attention-answer")
    given = [text, mode, layer, head]
    gr.on([show.click, text.submit], shows_problems(handlers.attend), given, shown, api_name="attention")
