/**
 * Edit Captions by Hand: a button that puts the captions of the last execution into the text, to be corrected there.
 * A plain button widget is drawn by both node renderers.
 */
import { app } from "../../../scripts/app.js";

const BUTTON = "Fill with the captions";

function tell(detail) {
  app.extensionManager.toast.add({ severity: "info", summary: BUTTON, detail, life: 6000 });
}

app.registerExtension({
  name: "FineTune.EditCaptions",
  nodeCreated(node) {
    if (node.comfyClass !== "FineTuneEditCaptions") return;
    const edits = node.widgets.find((widget) => widget.name === "edits");
    let captions;
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      captions = output?.captions ?? captions;
    };
    const button = node.addWidget("button", BUTTON, null, async () => {
      if (!captions) return tell("Queue the graph once; then the captions are here.");
      const replaced = captions.join("\n");
      if (edits.value.trim() && edits.value !== replaced) {
        const title = "Replace your text?", message = "The captions of the last run take the place of what is typed here.";
        if (!(await app.extensionManager.dialog.confirm({ title, message }))) return;
      }
      edits.value = replaced;
      edits.callback?.(replaced);
      node.setDirtyCanvas(true, true);
    }, { serialize: false });
    button.serialize = false;
  },
});
