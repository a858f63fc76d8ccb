/** Cron expressions in words. */

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

/** Returns the number of a name such as "MON", or of digits; null for anything else. */
function numberOf(text, names, first) {
  if (/^\d+$/.test(text)) return Number(text);
  const at = names.findIndex((name) => name.slice(0, 3).toLowerCase() === text.toLowerCase());
  return at < 0 ? null : at + first;
}

/** Returns a list in words: "Monday to Friday", "1, 2 and 5"; null if a part is not a number, name or range. */
function listText(field, nameOf, numberIn = (text) => (/^\d+$/.test(text) ? Number(text) : null)) {
  const parts = field.split(",").map((part) => {
    const ends = part.split("-");
    const numbers = ends.map(numberIn);
    if (ends.length > 2 || numbers.includes(null)) return null;
    const names = numbers.map(nameOf);
    return names.includes(undefined) ? null : names.join(" to ");
  });
  if (parts.includes(null)) return null;
  return parts.length < 2 ? parts[0] : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}

const isNumber = (text) => /^\d{1,2}$/.test(text);
const two = (text) => text.padStart(2, "0");

function timeText(minute, hour) {
  if (isNumber(minute) && isNumber(hour)) return `at ${two(hour)}:${two(minute)}`;
  const hours = hour.split(",");
  if (isNumber(minute) && hours.length > 1 && hours.every(isNumber)) return `at ${hours.map((one) => `${two(one)}:${two(minute)}`).join(", ").replace(/, ([^,]*)$/, " and $1")}`;
  const steps = /^\*\/(\d+)$/;
  const within = (/^(\d{1,2})-(\d{1,2})$/.exec(hour) ?? []).slice(1);
  const when = within.length ? ` from ${two(within[0])}:00 to ${two(within[1])}:59` : hour === "*" ? "" : null;
  const step = steps.exec(minute)?.[1];
  if (minute === "*" && when !== null) return `every minute${when}`;
  if (step && when !== null) return `every ${step} minutes${when}`;
  if (isNumber(minute) && when !== null) return Number(minute) ? `every hour at minute ${Number(minute)}${when}` : `every hour${when}`;
  const hourStep = steps.exec(hour)?.[1];
  if (isNumber(minute) && hourStep) return `every ${hourStep} hours at minute ${Number(minute)}`;
  return null;
}

function dayText(dayOfMonth, month, weekday) {
  const months = month === "*" ? "" : listText(month, (number) => MONTHS[number - 1], (text) => numberOf(text, MONTHS, 1));
  const days = weekday === "*" ? "" : listText(weekday, (number) => DAYS[number % 7], (text) => numberOf(text, DAYS, 0));
  const dates = dayOfMonth === "*" ? "" : dayOfMonth === "L" ? "the last day" : listText(dayOfMonth, String);
  if (months === null || days === null || dates === null) return null;
  const inMonths = months && ` in ${months}`;
  const onDate = dates && (dates === "the last day" ? dates : `day ${dates}`) + (months ? "" : " of the month");
  if (dates && days) return `on ${onDate}${inMonths}, and on ${days}`;
  if (dates) return `on ${onDate}${inMonths}`;
  if (days) return `on ${days}${inMonths}`;
  return inMonths.trim();
}

/** Returns "At 09:00 on Monday to Friday" for an expression of five fields, or null if its words would be unclear. */
export function cronText(cron) {
  const fields = cron.trim().split(/\s+/);
  if (fields.length !== 5) return null;
  const [minute, hour, dayOfMonth, month, weekday] = fields;
  const time = timeText(minute, hour);
  const days = dayText(dayOfMonth, month, weekday);
  if (time === null || days === null) return null;
  const text = [time, days || (time.startsWith("at") ? "every day" : "")].filter(Boolean).join(" ");
  return text[0].toUpperCase() + text.slice(1);
}
