/** Places of times on an axis. Long times without activity, for example before a retry, are shortened. Pure. */

import { duration } from "./format.js";

/** A pause is shortened if it is longer than this share of the active time. */
const PAUSE_SHARE = 1;
/** Width of a shortened pause, as a share of the active time. */
const BREAK_SHARE = 0.06;
const TICKS_MAX = 5;
/** Widths of texts on the axis in percent, with room to the next one. */
const TICK_WIDTH = 12;
const BREAK_WIDTH = 24;
const STEPS = [1, 2, 5];
const MINUTE = 60_000;
const LONG_STEPS_MS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 240, 480].map((minutes) => minutes * MINUTE);

/** Merges spans { from, to } that overlap or have no more than `gapMs` between them; returns them in order. */
export function mergeSpans(spans, gapMs = 0) {
  const merged = [];
  for (const { from, to } of [...spans].sort((a, b) => a.from - b.from)) {
    const last = merged.at(-1);
    if (last && from <= last.to + gapMs) last.to = Math.max(last.to, to);
    else merged.push({ from, to });
  }
  return merged;
}

/**
 * Returns { start, parts, percent(time) } for spans of activity. `parts` are { from, to, at, width, isBreak }: times
 * in ms, and places in percent.
 */
export function createScale(spans) {
  const busy = mergeSpans(spans);
  const active = busy.reduce((sum, { from, to }) => sum + to - from, 0) || 1;
  const parts = [];
  busy.forEach(({ from, to }, index) => {
    const before = busy[index - 1];
    if (before) parts.push({ from: before.to, to: from, isBreak: from - before.to > active * PAUSE_SHARE });
    parts.push({ from, to, isBreak: false });
  });
  const sizeOf = ({ from, to, isBreak }) => (isBreak ? active * BREAK_SHARE : to - from);
  const whole = parts.reduce((sum, part) => sum + sizeOf(part), 0) || 1;
  let place = 0;
  for (const part of parts) {
    part.at = place;
    part.width = (sizeOf(part) / whole) * 100;
    place += part.width;
  }
  const percent = (time) => {
    const part = parts.findLast(({ from }) => from <= time) ?? parts[0];
    const share = part.to > part.from ? (time - part.from) / (part.to - part.from) : 0;
    return part.at + part.width * Math.min(1, Math.max(0, share));
  };
  return { start: parts[0].from, end: parts.at(-1).to, msPerPercent: whole / 100, parts, percent };
}

/** Returns the marks of an axis: { percent, text, isBreak }, times since the start, without the shortened pauses. */
export function ticksOf(scale) {
  const step = niceStep((scale.msPerPercent * 100) / TICKS_MAX);
  const breaks = scale.parts.filter(({ isBreak }) => isBreak);
  const ticks = [];
  for (let ms = 0; scale.start + ms <= scale.end && ticks.length < 2 * TICKS_MAX + 2; ms += step) {
    const inside = breaks.find(({ from, to }) => scale.start + ms > from && scale.start + ms < to);
    // Goes on after the pause, at a multiple of the step.
    if (inside) ms = Math.floor((inside.to - scale.start) / step) * step;
    else ticks.push({ percent: scale.percent(scale.start + ms), text: ms === 0 ? "0" : tickText(ms), isBreak: false });
  }
  // The text of a pause needs the room of ticks beside it.
  const isFree = ({ percent }) => breaks.every(({ at, width }) => percent < at - TICK_WIDTH || percent > at + width + BREAK_WIDTH);
  return [...ticks.filter(isFree), ...breaks.map(({ at, from, to }) => ({ percent: at, text: `${duration(to - from)} pause`, isBreak: true }))];
}

/** Returns the distance of ticks in percent, or null if pauses make it uneven. */
export const tickDistance = (scale) => (scale.parts.some(({ isBreak }) => isBreak) ? null : niceStep((scale.msPerPercent * 100) / TICKS_MAX) / scale.msPerPercent);

/** "1.50 s" as "1.5 s": ticks are round. */
const tickText = (ms) => duration(ms).replace(/(\.\d*?)0+ s$/, "$1 s").replace(". s", " s");

function niceStep(atLeast) {
  const long = LONG_STEPS_MS.find((step) => step >= atLeast);
  if (atLeast > 20_000 && long) return long;
  const power = 10 ** Math.floor(Math.log10(Math.max(1, atLeast)));
  return (STEPS.find((step) => step * power >= atLeast) ?? 10) * power;
}
