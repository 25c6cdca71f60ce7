// Starts the page: which view is shown, the colours, the key, whether the server is there.

import { buildCluster, showCluster } from "./cluster.js";
import { byId } from "./element.js";
import { buildPlayground } from "./playground.js";
import { ask, askJson, key, onKey, setKey } from "./server.js";

const HEALTH_EVERY_MS = 5000;
const THEME = "pdq.theme";
const THEMES = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function showView() {
  const name = location.hash === "#cluster" ? "cluster" : "playground";
  for (const view of ["playground", "cluster"]) {
    byId(view).hidden = view !== name;
    if (view === name) byId(`to-${view}`).setAttribute("aria-current", "page");
    else byId(`to-${view}`).removeAttribute("aria-current");
  }
  document.title = name === "cluster" ? "pdq: cluster" : "pdq: playground";
  showCluster(name === "cluster");
}

function showTheme(name) {
  const [sign, words] = THEMES[name];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = sign;
  byId("theme").setAttribute("aria-label", `Colours: ${words}`);
  byId("theme").title = `Colours: ${words}`;
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(localStorage.getItem(THEME) ?? "") + 1) % names.length];
  if (next) localStorage.setItem(THEME, next);
  else localStorage.removeItem(THEME);
  showTheme(next);
}

function showKeyPanel(isOpen, note) {
  byId("key-panel").hidden = !isOpen;
  byId("key-button").setAttribute("aria-expanded", String(isOpen));
  byId("key-note").textContent = note ?? "It stays in this tab and is gone when the tab is closed.";
  byId("key-forget").hidden = !key();
  if (isOpen) byId("key-field").focus();
}

async function askName() {
  try {
    byId("model").textContent = (await askJson("get_model_name")).model_name;
    byId("key-button").textContent = key() ? "API key ✓" : "API key";
  } catch (error) {
    byId("model").textContent = "";
    if (error.status === 401) showKeyPanel(true, key() ? "This key is not known to the server, or no longer valid." : "This server asks for an API key.");
  }
}

async function watchHealth() {
  for (;;) {
    let [state, words] = ["bad", "unreachable"];
    try {
      await ask("readiness");
      [state, words] = ["good", "ready"];
    } catch (error) {
      if (error.status === 503) [state, words] = ["warn", error.message];
    }
    byId("health").className = `state ${state}`;
    byId("health").title = words;
    if (byId("health").lastElementChild.textContent !== words) byId("health").lastElementChild.textContent = words;
    await new Promise((resolve) => setTimeout(resolve, HEALTH_EVERY_MS));
  }
}

showTheme(localStorage.getItem(THEME) ?? "");
byId("theme").addEventListener("click", nextTheme);
byId("key-button").addEventListener("click", () => showKeyPanel(byId("key-panel").hidden));
byId("key-panel").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key-field").value.trim());
  byId("key-field").value = "";
  showKeyPanel(false);
});
byId("key-forget").addEventListener("click", () => (setKey(""), showKeyPanel(false)));
onKey(askName);
addEventListener("hashchange", showView);
buildPlayground();
buildCluster();
showView();
askName();
watchHealth();
