// Asking the server: paths relative to the page, the API key if there is one, refusals as errors.
// The key stays in this tab's sessionStorage and goes nowhere but into the header.

const KEY = "pdq.key";
const changed = new EventTarget();

export class Refused extends Error {
  constructor(status, message, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.isAboutKey = status === 401 || status === 403;
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(text) {
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
  changed.dispatchEvent(new Event("key"));
}

export const onKey = (listener) => changed.addEventListener("key", listener);

// The response of a 2xx. Throws Refused, and TypeError where nobody answers.
export async function ask(path, { headers = {}, ...options } = {}) {
  const shown = key() ? { Authorization: `Bearer ${key()}` } : {};
  const response = await fetch(path, { cache: "no-store", ...options, headers: { ...headers, ...shown } });
  if (response.ok) return response;
  throw new Refused(response.status, await reason(response), Number(response.headers.get("Retry-After") ?? 0));
}

export const askJson = async (path, options) => (await ask(path, options)).json();

async function reason(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return body.message ?? body.error?.message ?? body.detail ?? `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
}
