/** The editor's looks, in the frontend's own colors. Heights are those that editor.js counts with. */

const CSS = `
.ftls, .ftls-popup {
  --ftls-text: var(--input-text, #ddd);
  --ftls-dim: var(--descrip-text, #999);
  --ftls-line: var(--border-color, #4e4e4e);
  --ftls-field: var(--comfy-input-bg, #222);
  --ftls-row: color-mix(in srgb, var(--comfy-input-bg, #222) 55%, transparent);
  --ftls-hover: color-mix(in srgb, var(--input-text, #ddd) 12%, transparent);
  --ftls-track: color-mix(in srgb, var(--input-text, #ddd) 22%, transparent);
  --ftls-accent: var(--p-primary-color, #3b82f6);
  --ftls-wrong: var(--error-text, #ff4444);
  --ftls-warm: #d98a00;
  color: var(--ftls-text);
  font-size: 12px; line-height: 1.3;
  box-sizing: border-box;
}
.ftls *, .ftls-popup * { box-sizing: border-box; }
.ftls [hidden] { display: none !important; }
.ftls { display: flex; flex-direction: column; gap: 6px; width: 100%; min-height: 0; cursor: default; contain: inline-size; }
.ftls[inert] { opacity: 0.45; }
.ftls button, .ftls input, .ftls select, .ftls textarea, .ftls-popup button, .ftls-popup input {
  font: inherit; color: inherit; margin: 0;
}
.ftls button, .ftls-popup button { border: 0; background: none; padding: 0; cursor: pointer; }
.ftls :focus-visible, .ftls-popup :focus-visible { outline: 2px solid var(--ftls-accent); outline-offset: 1px; }
.ftls svg, .ftls-popup svg {
  width: 16px; height: 16px; flex: none; fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linecap: round;
  stroke-linejoin: round;
}
.ftls-line { display: flex; align-items: center; gap: 4px; min-width: 0; }
.ftls-header { height: 22px; flex: none; padding: 0 8px 0 31px; gap: 8px; }
.ftls-dim { color: var(--ftls-dim); }
.ftls-offscreen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }

.ftls-rows { display: flex; flex-direction: column; gap: 6px; flex: 0 1 auto; min-height: 0; overflow: hidden auto;
  max-height: 600px;
  padding: 1px; margin: -1px; scrollbar-width: thin; }
.dom-widget > .ftls .ftls-rows { max-height: none; }
.ftls-row { flex: none; background: var(--ftls-row); border: 1px solid var(--ftls-line); border-radius: 7px;
  padding: 3px 6px 4px 3px; }
.ftls-row > .ftls-line { height: 26px; }
.ftls-off > .ftls-line > :not(.ftls-handle, .ftls-switch, .ftls-icon) { opacity: 0.5; }
.ftls-off .ftls-strip { opacity: 0.6; }
.ftls-dragged { border-color: var(--ftls-accent); box-shadow: 0 4px 14px rgb(0 0 0 / 45%); background: var(--ftls-field); }
.ftls-icon { width: 24px; height: 24px; flex: none; display: grid; place-items: center; border-radius: 5px;
  color: var(--ftls-dim) !important; }
.ftls-icon:hover:not(:disabled) { background: var(--ftls-hover); color: var(--ftls-text) !important; }
.ftls-icon:disabled { opacity: 0.35; cursor: default; }
.ftls-icon[aria-pressed="true"], .ftls-icon.ftls-used { color: var(--ftls-accent) !important; }
.ftls-icon[aria-expanded="true"] { background: var(--ftls-hover); }
.ftls-icon.ftls-alarm { color: var(--ftls-warm) !important; }
.ftls-handle { width: 18px; cursor: grab !important; touch-action: none; }
.ftls-handle:active { cursor: grabbing !important; }
.ftls-handle svg { stroke-width: 2.2; }

.ftls-switch { position: relative; width: 28px; height: 16px; flex: none; border-radius: 8px !important;
  background: var(--ftls-track) !important;
  transition: background 0.12s; }
.ftls-switch::after { content: ""; position: absolute; top: 2px; left: 2px; width: 12px; height: 12px; border-radius: 50%;
  background: #fff;
  box-shadow: 0 1px 2px rgb(0 0 0 / 40%); transition: left 0.12s; }
.ftls-switch[aria-checked="true"] { background: var(--ftls-accent) !important; }
.ftls-switch[aria-checked="true"]::after { left: 14px; }
.ftls-switch[aria-checked="mixed"]::after { left: 8px; }

.ftls-pick { flex: 1; min-width: 0; height: 24px; display: flex; align-items: center; gap: 6px; border-radius: 5px;
  padding: 0 4px 0 6px !important;
  margin-left: 3px !important; text-align: left; }
.ftls-pick:hover { background: var(--ftls-hover) !important; }
.ftls-pick svg { margin-left: auto; width: 14px; height: 14px; color: var(--ftls-dim); }
.ftls-name { font-weight: 600; font-size: 12.5px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  flex: 0 1 auto; }
.ftls-pick .ftls-dim { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: 0 100 auto; font-size: 11px; }
.ftls-state { flex: none; max-width: 50%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: 11px;
  color: var(--ftls-dim); }
.ftls-state:empty { display: none; }
.ftls-wrong { color: var(--ftls-wrong); font-weight: 600; }

.ftls-strengths { padding-left: 28px; gap: 6px; }
.ftls-strength { display: flex; align-items: center; gap: 6px; flex: 1; min-width: 0; }
.ftls-label { color: var(--ftls-dim); font-size: 11px; flex: none; }
.ftls-slider { -webkit-appearance: none; appearance: none; flex: 1; min-width: 20px; width: 20px; height: 18px;
  background: none; cursor: pointer;
  border-radius: 5px; --from: 50%; --to: 75%; }
.ftls-slider::-webkit-slider-runnable-track { height: 4px; border-radius: 2px; background: linear-gradient(to right,
  var(--ftls-track) var(--from), var(--ftls-accent) var(--from), var(--ftls-accent) var(--to), var(--ftls-track)
  var(--to)); }
.ftls-slider::-moz-range-track { height: 4px; border-radius: 2px; background: linear-gradient(to right,
  var(--ftls-track) var(--from), var(--ftls-accent) var(--from), var(--ftls-accent) var(--to), var(--ftls-track)
  var(--to)); }
.ftls-slider::-webkit-slider-thumb { -webkit-appearance: none; width: 12px; height: 12px; margin-top: -4px;
  border-radius: 50%; background: #fff;
  border: 1px solid rgb(0 0 0 / 35%); box-shadow: 0 1px 2px rgb(0 0 0 / 30%); }
.ftls-slider::-moz-range-thumb { width: 11px; height: 11px; border-radius: 50%; background: #fff;
  border: 1px solid rgb(0 0 0 / 35%); }
.ftls-number, .ftls-text, .ftls-select, .ftls-filter, .ftls-raw { background: var(--ftls-field) !important;
  border: 1px solid var(--ftls-line) !important;
  border-radius: 5px !important; height: 22px; padding: 0 5px !important; min-width: 0; }
.ftls-number { width: 46px; flex: none; text-align: right; font-variant-numeric: tabular-nums; }
.ftls-text { flex: 1; width: 60px; font-family: ui-monospace, Menlo, Consolas, monospace !important;
  font-size: 11px !important; }
.ftls-text[aria-invalid="true"] { border-color: var(--ftls-wrong) !important; }
.ftls-select { width: 92px; padding: 0 2px !important; }
.ftls-family { width: 156px; }

.ftls-strip { height: 203px; margin: 4px 0 0 28px; padding: 7px 0 2px; display: flex; flex-direction: column; gap: 6px;
  border-top: 1px solid var(--ftls-line); }
.ftls-strip .ftls-line { height: 24px; flex: none; }
.ftls-block { min-width: 46px; font-weight: 600; font-variant-numeric: tabular-nums; }
.ftls-message { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--ftls-dim);
  font-size: 11px; }
.ftls-faulty .ftls-message { color: var(--ftls-wrong); }
.ftls-faulty .ftls-block, .ftls-faulty .ftls-block + .ftls-number { display: none; }
.ftls-bars { flex: 1; min-height: 0; display: flex; gap: 5px; padding: 1px; }
.ftls-unknown { opacity: 0.3; }
.ftls-group { display: flex; flex-direction: column; align-items: center; flex: 1 1 22px; min-width: 0; gap: 2px; }
.ftls-group > span { font-size: 9px; letter-spacing: 0.04em; color: var(--ftls-dim); line-height: 11px; height: 11px; }
.ftls-group-bars { display: flex; gap: 1px; width: 100%; flex: 1; min-height: 0; cursor: ns-resize; touch-action: none; }
.ftls-bar { position: relative; flex: 1; min-width: 0; border-radius: 2px;
  background: linear-gradient(var(--ftls-line), var(--ftls-line)) 0 50% / 100% 1px no-repeat
  color-mix(in srgb, var(--ftls-text) 8%, transparent); overflow: hidden; }
.ftls-bar::after { content: ""; position: absolute; inset: auto 0 0; height: var(--height, 50%);
  background: var(--ftls-accent); opacity: 0.95; }
.ftls-neutral .ftls-bar::after { background: var(--ftls-dim); opacity: 0.55; }
.ftls-bar.ftls-beyond { box-shadow: inset 0 0 0 1px var(--ftls-warm); }
.ftls-bar:hover::after { filter: brightness(1.2); }
.ftls-bar:focus-visible { outline-offset: 0; overflow: visible; z-index: 1; }
.ftls-factors { justify-content: space-between; }
.ftls-factors label { display: flex; align-items: center; gap: 5px; color: var(--ftls-dim); font-size: 11px; }
.ftls-factors .ftls-number { color: var(--ftls-text); font-size: 12px; }

.ftls-add { flex: none; height: 30px; display: flex; align-items: center; justify-content: center; gap: 6px;
  border: 1px dashed var(--ftls-line) !important;
  border-radius: 7px !important; color: var(--ftls-text); }
.ftls-add:hover { background: var(--ftls-hover) !important; border-style: solid !important; }
.ftls-add:disabled { opacity: 0.5; cursor: progress; }
.ftls-hint { margin: 0; height: 40px; display: grid; place-items: center; color: var(--ftls-dim); text-align: center; }
.ftls-warning { margin: 0; display: flex; gap: 6px; align-items: flex-start; color: var(--ftls-warm); }
.ftls > .ftls-warning { color: var(--ftls-wrong); }
.ftls-raw { flex: 1; height: 120px; min-height: 120px; padding: 6px !important; resize: none;
  font-family: ui-monospace, Menlo, Consolas, monospace !important; }

.ftls-popup { position: fixed; z-index: 10001; max-width: min(420px, calc(100vw - 8px));
  background: var(--comfy-menu-bg, #353535);
  border: 1px solid var(--ftls-line); border-radius: 8px; box-shadow: 0 8px 28px rgb(0 0 0 / 45%); overflow: hidden;
  font-size: 13px; }
.ftls-popup:focus { outline: none; }
.ftls-picker { width: 340px; display: flex; flex-direction: column; }
.ftls-search { display: flex; align-items: center; gap: 6px; padding: 8px; border-bottom: 1px solid var(--ftls-line);
  color: var(--ftls-dim); }
.ftls-filter { flex: 1; height: 28px; color: var(--ftls-text) !important; padding: 0 8px !important; }
.ftls-list { height: 280px; overflow: hidden auto; padding: 4px; scrollbar-width: thin; }
.ftls-folder { padding: 7px 8px 3px; font-size: 11px; color: var(--ftls-dim); overflow-wrap: anywhere; }
.ftls-option { padding: 5px 8px; border-radius: 5px; cursor: pointer; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.ftls-option:hover { background: var(--ftls-hover); }
.ftls-option[aria-selected="true"] { background: color-mix(in srgb, var(--ftls-accent) 32%, transparent); }
.ftls-option.ftls-current { font-weight: 700; }
.ftls-count { padding: 5px 12px; font-size: 11px; color: var(--ftls-dim); border-top: 1px solid var(--ftls-line); }

.ftls-card { width: 360px; max-height: min(560px, calc(100vh - 16px)); overflow: hidden auto; padding: 14px; display: flex;
  flex-direction: column;
  gap: 12px; scrollbar-width: thin; }
.ftls-card > * { flex: none; margin: 0; }
.ftls-card h3 { margin: 0; font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
.ftls-card h4 { margin: 0 0 5px; font-size: 11px; font-weight: 500; color: var(--ftls-dim); }
.ftls-path { font-size: 11px; color: var(--ftls-dim); overflow-wrap: anywhere; }
.ftls-image { max-width: 100%; max-height: 240px; min-height: 96px; border-radius: 6px; object-fit: contain;
  background: var(--ftls-field); }
.ftls-facts, .ftls-metadata { display: grid; grid-template-columns: max-content 1fr; gap: 3px 12px; margin: 0; }
.ftls-facts dt, .ftls-metadata dt { color: var(--ftls-dim); }
.ftls-facts dd, .ftls-metadata dd { margin: 0; overflow-wrap: anywhere; }
.ftls-metadata { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); font-size: 11px; padding-top: 6px; }
.ftls-metadata dt { overflow-wrap: anywhere; }
.ftls-card summary { cursor: pointer; color: var(--ftls-dim); border-radius: 4px; }
.ftls-words { display: flex; flex-wrap: wrap; gap: 5px; }
.ftls-word { display: inline-flex; align-items: center; gap: 5px; max-width: 100%; padding: 3px 8px !important;
  border: 1px solid var(--ftls-line) !important;
  border-radius: 12px !important; background: var(--ftls-field) !important; }
.ftls-word span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.ftls-word svg { width: 12px; height: 12px; color: var(--ftls-dim); }
.ftls-word:hover, .ftls-copied { border-color: var(--ftls-accent) !important; }
.ftls-copied { background: var(--ftls-accent) !important; }
.ftls-description { white-space: pre-line; overflow-wrap: anywhere; }
@media (prefers-reduced-motion: reduce) { .ftls-switch, .ftls-switch::after { transition: none; } }
`;

export function addStyle() {
  const style = document.createElement("style");
  style.id = "finetune-lora-stack";
  style.textContent = CSS;
  document.head.append(style);
}
