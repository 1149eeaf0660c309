/**
 * Advanced widgets in the classic renderer: it hides those that say so themselves (right-click a node, Show Advanced), while
 * the frontend writes what the server says into their options only, which the Vue renderer reads.
 */
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "FineTune.AdvancedWidgets",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FineTune")) return;
    for (const widget of node.widgets ?? []) {
      if (widget.options?.advanced) widget.advanced = true;
    }
  },
});
