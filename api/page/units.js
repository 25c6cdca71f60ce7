// Numbers as people read them, always with their unit.

export const none = "–";

export function milliseconds(ms) {
  if (ms == null) return none;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return seconds(ms / 1000);
}

export function seconds(s) {
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 120) return `${s.toFixed(s < 60 ? 1 : 0)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return `${(s / 3600).toFixed(1)} h`;
}

export function bytes(number) {
  const steps = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  for (; number >= 1024 && step < steps.length - 1; step++) number /= 1024;
  return `${number.toFixed(step && number < 100 ? 1 : 0)} ${steps[step]}`;
}

export const counted = (number, one, several = `${one}s`) => `${grouped(number)} ${number === 1 ? one : several}`;
export const grouped = (number) => Math.round(number).toLocaleString("en");
export const rate = (number) => (number < 10 ? number.toFixed(1) : grouped(number));
export const percent = (share) => (share >= 0.9995 ? "100 %" : share >= 0.01 ? `${(share * 100).toFixed(1)} %` : "< 1 %");
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
export const shortWorker = (id) => id.replace(/^(\w+)-(\w{4})\w*$/, "$1-$2");
