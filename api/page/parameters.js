// The fields beside the conversation, and what of them goes into a request. Empty ones are left to the server.

import { byId, element } from "./element.js";

const STORE = "pdq.parameters";
const NUMBERS = [
  ["max_tokens", "Most output tokens", { min: 1, step: 1, value: 256 }],
  ["temperature", "Temperature", { min: 0, max: 2, step: "any", placeholder: "the model's; 0 is greedy" }],
  ["top_p", "Top p", { min: 0.01, max: 1, step: "any", placeholder: "the model's" }],
  ["top_k", "Top k", { min: 1, step: 1, placeholder: "no limit" }],
  ["min_p", "Min p", { min: 0, max: 1, step: "any", placeholder: "0" }],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: "any", placeholder: "0" }],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2, step: "any", placeholder: "0" }],
  ["repetition_penalty", "Repetition penalty", { min: 0.01, max: 2, step: "any", placeholder: "1" }],
  ["seed", "Seed", { step: 1, placeholder: "drawn by the server" }],
];
const TOP_LOGPROBS = 5;

export function buildParameters() {
  const form = byId("parameter-form");
  const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
  form.append(
    labelled("System message", element("textarea", { name: "system", rows: 2, placeholder: "none" })),
    ...NUMBERS.map(([name, label, bounds]) => labelled(label, element("input", { type: "number", name, ...bounds }))),
    labelled("Stop at, one a line", element("textarea", { name: "stop", rows: 2, placeholder: "nothing" })),
    labelled("Priority", element("select", { name: "priority" },
      ...["normal", "high", "low"].map((name) => element("option", { value: name }, name)))),
    tick("logprobs", "Token probabilities"),
    tick("tint", "Underline unlikely tokens"),
  );
  for (const field of form.elements) {
    if (!(field.name in kept)) continue;
    if (field.type === "checkbox") field.checked = kept[field.name];
    else field.value = kept[field.name];
  }
  form.addEventListener("input", () => sessionStorage.setItem(STORE, JSON.stringify(values())));
  form.addEventListener("submit", (event) => event.preventDefault());
  if (matchMedia("(max-width: 56rem)").matches) byId("parameters").open = false;
}

export const isTinted = () => values().tint;
export const systemMessage = () => values().system.trim();
export const priority = () => values().priority;

// The part of the body that both routes share. Throws Error that names the field which is out of its bounds.
export function sampling() {
  const form = byId("parameter-form");
  const wrong = [...form.elements].find((field) => !field.validity.valid);
  if (wrong) {
    byId("parameters").open = true;
    wrong.focus();
    throw new Error(`${wrong.labels[0].firstChild.textContent}: ${wrong.validationMessage}`);
  }
  const given = values();
  const numbers = NUMBERS.filter(([name]) => given[name] !== "").map(([name]) => [name, Number(given[name])]);
  const stop = given.stop.split("\n").filter(Boolean);
  return { ...Object.fromEntries(numbers), ...(stop.length ? { stop } : {}) };
}

// How logprobs are asked for: the two routes differ.
export const wantedLogprobs = (mode) =>
  !values().logprobs ? {} : mode === "chat" ? { logprobs: true, top_logprobs: TOP_LOGPROBS } : { logprobs: TOP_LOGPROBS };

function values() {
  const fields = [...byId("parameter-form").elements].filter((field) => field.name);
  return Object.fromEntries(fields.map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]));
}

const labelled = (text, field) => element("label", {}, element("span", {}, text), field);
const tick = (name, text) =>
  element("label", { class: "tick" }, element("input", { type: "checkbox", name, checked: true }), element("span", {}, text));
