/** The view "Settings": of this browser (theme, time zone, token) and, to read, of the server. */

import { html } from "../vendor/preact.js";
import * as api from "../api.js";
import { bytes, count, duration, plural } from "../format.js";
import { ZoneButton } from "../period-picker.js";
import { changeSettings, isHelpShown, settings, SYSTEM_ZONE, useData, useStore } from "../state.js";
import { Button, confirmAction, ErrorNote, Facts, Loading, Page, Section, showError, Time, toast } from "../ui.js";

const THEMES = [["system", "Like the system"], ["light", "Light"], ["dark", "Dark"]];
const DAY_MS = 24 * 60 * 60 * 1000;

export default function Settings() {
  const { data, error, reload } = useData("/api/settings");
  return html`
    <${Page} title="Settings">
      <div class="settings">
        <${Theme} />
        <${Zone} />
        <${Access} server=${data} />
        <${Bodies} server=${data} />
        <${Exports} />
        <${Section} title="About" className="card" testid="about">
          <${ErrorNote} title="Cannot load the settings of the server" error=${error} onRetry=${reload} />
          ${data ? html`<${About} server=${data} />` : !error && html`<${Loading} />`}
        <//>
      </div>
    <//>
  `;
}

function Theme() {
  const { theme } = useStore(settings);
  return html`
    <${Section} title="Theme" className="card">
      <fieldset class="choice">
        <legend class="hidden-text">Theme</legend>
        ${THEMES.map(([value, label]) => html`
          <label class="check" key=${value}><input type="radio" name="theme" value=${value} checked=${theme === value} data-testid=${`theme-${value}`} onChange=${() => changeSettings({ theme: value })} />${label}</label>
        `)}
      </fieldset>
    <//>
  `;
}

function Zone() {
  const { zone } = useStore(settings);
  const isSystem = zone === SYSTEM_ZONE;
  return html`
    <${Section} title="Time zone" className="card" testid="zone">
      <p>All times, days and periods of this page are in this zone. Budgets and schedules have zones of their own. The time is now <${Time} at=${new Date().toISOString()} />.</p>
      <div class="buttons">
        <${ZoneButton} zone=${zone} kind="" />
        ${isSystem ? html`<span class="muted">the zone of this browser</span>` : html`<${Button} kind="quiet" data-testid="zone-system" onClick=${() => changeSettings({ zone: SYSTEM_ZONE })}>Use the zone of this browser (${SYSTEM_ZONE.replaceAll("_", " ")})<//>`}
      </div>
    <//>
  `;
}

/** The token of this browser. */
function Access({ server }) {
  const logOut = () => {
    api.forgetToken();
    location.reload(); // Ends the live connection too.
  };
  const hasToken = Boolean(api.currentToken());
  const isOpen = server?.token_required === false;
  return html`
    <${Section} title="Access" className="card" testid="access">
      ${hasToken && html`<p>This browser stores the token of this server. Logging out deletes it here; the page then asks for it again. The token itself stays valid.</p><div><${Button} data-testid="log-out" onClick=${logOut}>Log out<//></div>`}
      ${!hasToken && html`<p>${isOpen ? "This server requires no token. Anyone who reaches it can use it." : "This browser stores no token."} To require one, start the server with <code>--token</code> or <code>FLOWLEDGER_TOKEN</code>.</p>`}
    <//>
  `;
}

/** Stored requests and responses of calls. */
function Bodies({ server }) {
  const { bodies_days: days = null, bodies_mb: megabytes = null } = server?.retention ?? {};
  const deleteAll = async () => {
    const isSure = await confirmAction({
      title: "Delete all stored bodies?",
      text: "The requests and responses of all calls are deleted. Their rows, tokens and costs stay. This cannot be undone.",
      action: "Delete",
    });
    if (!isSure) return;
    try {
      await api.remove("/api/bodies");
      toast("done", "All stored bodies were deleted");
    } catch (error) {
      showError("Cannot delete the stored bodies", error);
    }
  };
  return html`
    <${Section} title="Requests and responses of calls" className="card" testid="bodies">
      ${server && days !== null && html`<p>Bodies are stored for ${days < 1 ? "less than a day" : plural(days, "day")}${megabytes !== null && `, at most ${count(megabytes)} MiB`}. Secrets in them are masked.</p>`}
      ${server && days === null && html`<p>Bodies are not stored. To look into future calls, set <code>bodies_days</code> under <code>[retention]</code> in the configuration file, and restart the server.</p>`}
      <div><${Button} kind="danger" data-testid="delete-bodies" onClick=${deleteAll}>Delete all stored bodies<//></div>
    <//>
  `;
}

/** Addresses of the server. A browser's link cannot send the token, so the page fetches the file if there is one. */
function Exports() {
  return html`
    <${Section} title="Data" className="card" testid="exports">
      <ul class="lines">
        <li><span><${Download} path="/api/ledger.csv" name="ledger.csv" label="All calls as CSV" /></span></li>
        <li><span><${Download} path="/metrics" name="metrics.txt" label="Metrics for Prometheus" isPage /></span></li>
        <li><span><${Download} path="/api/health" name="health.json" label="Health" isPage /></span></li>
      </ul>
    <//>
  `;
}

function Download({ path, name, label, isPage = false }) {
  if (!api.currentToken()) return html`<a href=${path} download=${isPage ? null : name} data-testid=${`download-${name}`}>${label}</a>`;
  const save = async () => {
    try {
      const [{ saveFile }, content] = await Promise.all([import("../copy.js"), api.getBlob(path)]);
      saveFile(name, content);
    } catch (error) {
      showError(`Cannot save ${name}`, error);
    }
  };
  return html`<${Button} kind="quiet" data-testid=${`download-${name}`} onClick=${save}>${label}<//>`;
}

function About({ server }) {
  const { version, uptime_ms: uptime, database_bytes: size, retention = {}, end_users_hashed: isHashed, cache } = server;
  const isKnown = (value) => value !== null && value !== undefined;
  const limits = (number, days, word) => [isKnown(number) && `the newest ${count(number)} ${word}`, isKnown(days) && plural(days, "day")].filter(Boolean).join(", at most ") || null;
  const uptimeText = (ms) => (ms >= 2 * DAY_MS ? plural(Math.floor(ms / DAY_MS), "day") : duration(ms));
  const facts = [
    ["Version", version],
    ["Uptime", isKnown(uptime) ? uptimeText(uptime) : null],
    ["Database", isKnown(size) ? html`<span title=${plural(size, "byte")}>${bytes(size)}</span>` : null],
    ["Finished runs are kept", limits(retention.runs, retention.run_days, "runs")],
    ["Events are kept", limits(retention.events, retention.event_days, "events")],
    ["Calls are kept", "always"],
    ["Names of end users", isKnown(isHashed) ? (isHashed ? "stored as hashes" : "stored as sent") : null],
    ["Response cache", cacheText(cache)],
  ];
  return html`
    <${Facts} facts=${facts} testid="facts" />
    <div class="buttons"><${Button} onClick=${() => isHelpShown.set(true)} data-testid="show-shortcuts">Keyboard shortcuts<//></div>
  `;
}

function cacheText(cache) {
  if (!cache) return null;
  return `at most ${bytes(cache.bytes_max)}, ${bytes(cache.response_bytes_max)} for a response, ${plural(cache.days_max, "day")}`;
}
