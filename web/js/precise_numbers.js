/**
 * Small numbers in the Vue renderer. Its number field rounds to three decimals on frontends before 1.4x (seen on 1.32.9):
 * a learning rate of 0.0001 shows as 0 and changes when it is clicked. The field takes its digits from this option.
 */
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "FineTune.PreciseNumbers",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FineTune")) return;
    for (const widget of node.widgets ?? []) {
      if (widget.options?.precision > 3) widget.options.maxFractionDigits = widget.options.precision;
    }
  },
});
