"""Messages as ComfyUI sends them, parsed to events; and the lines that the demo makes of events."""
import struct

from demo import ProgressLines
from host_events import Event, parse, parse_binary


def test_json_messages():
    assert parse("executing", {"node": "3", "prompt_id": "p"}) == Event("executing", "3")
    assert parse("executing", {"node": None, "prompt_id": "p"}) == Event("finished")
    assert parse("progress", {"node": "3", "value": 2, "max": 9}) == Event("progress", "3", value=2, maximum=9)
    assert parse("executed", {"node": "3", "output": {"text": ["x"]}}) == Event("executed", "3", output={"text": ["x"]})
    assert parse("status", {"status": {}}) is None


def test_error_message():
    error = {"node_id": "3", "node_type": "Train", "exception_message": "no images\n"}
    assert parse("execution_error", error) == Event("error", "3", text="no images", node_type="Train")


def test_progress_text_and_preview_images():
    text = struct.pack(">II", 3, 2) + b"12" + "Verlust ä".encode()
    assert parse_binary(text) == Event("text", "12", text="Verlust ä")
    assert parse_binary(struct.pack(">II", 1, 2) + b"JPEG") is None


def test_progress_text_is_read_as_the_page_shows_it():
    html = "<div style='x'>a &#60;b&#62;<br>&amp;c</div>"
    assert parse_binary(struct.pack(">II", 3, 1) + b"7" + html.encode()).text == "a <b>\n&c"


def test_plain_lines_show_each_node_and_its_last_step(capsys):
    lines = ProgressLines({"1": "Load", "2": "Train LoRA"}, interactive=False)
    lines.show(Event("executing", "1"))
    lines.show(Event("executing", "2"))
    for step in (1, 2, 3):
        lines.show(Event("progress", "2", value=step, maximum=3))
    lines.show(Event("text", "2", text="loss 0.1\n0 s left"))
    lines.finish_line()
    assert capsys.readouterr().out == "  Load\n  Train LoRA\n  Train LoRA  100%  loss 0.1 0 s left\n"


def test_terminal_line_is_rewritten_and_leaves_no_rest(capsys):
    lines = ProgressLines({"1": "Train"}, interactive=True)
    lines.show(Event("executing", "1"))
    lines.show(Event("text", "1", text="loading the model"))
    lines.show(Event("text", "1", text="done"))
    lines.finish_line()
    last = capsys.readouterr().out.split("\r")[-1]
    assert last == "  " + "Train  done".ljust(len("Train  loading the model")) + "\n"
