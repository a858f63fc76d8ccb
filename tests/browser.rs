//! Drives a real headless Chromium over its DevTools protocol.
//!
//! This module adds to the `headless_chrome` crate a fresh profile, no traffic except to loopback,
//! JavaScript exceptions as errors, waits with deadlines, and cleanup. Each protocol call takes the
//! crate up to 100 ms, so related queries share one expression. A browser uses a processor for a
//! second or more to start, so there is one browser per test and not one per step.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headless_chrome::browser::tab::ModifierKey;
use headless_chrome::browser::tab::point::Point;
use headless_chrome::protocol::cdp::Emulation::SetDeviceMetricsOverride;
use headless_chrome::protocol::cdp::Input::{DispatchTouchEvent, InsertText};
use headless_chrome::protocol::cdp::Page::CaptureScreenshotFormatOption;
use headless_chrome::protocol::cdp::Runtime::Evaluate;
use headless_chrome::protocol::cdp::types::{Event, Method};
use headless_chrome::{LaunchOptions, Tab};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::DEADLINE;

/// The crate ends a call and the whole connection after this time without a message (default 30 s).
/// Waits are cut into [`SLICE`]s, so a test reaches the limit only if it leaves the browser alone
/// for that long.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// Longest single wait. Short waits survive a page reload and keep the connection busy.
const SLICE: Duration = Duration::from_secs(2);

/// The profile cannot be removed while the browser's helper processes still write to it; they end
/// within milliseconds after the browser.
const END_MAX: Duration = Duration::from_secs(10);

/// Added to the crate's own arguments. Nothing may leave this machine: name lookups fail at once.
const ARGS: [&str; 6] = [
    "--disable-quic",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
];

/// One browser with one tab. Its `Drop` removes process and files, also after a panic. (A `static`
/// is never dropped, and would leave the browser running.)
pub struct Browser {
    tab: Arc<Tab>,
    console: Arc<Mutex<Vec<String>>>,
    process: Option<headless_chrome::Browser>,
    profile: TempDir,
}

impl Browser {
    /// Starts a browser with an empty profile and a window of 1280 × 800.
    pub fn launch() -> Self {
        let profile = tempfile::Builder::new().prefix("flowledger-chromium-").tempdir().unwrap();
        // Chromium's launcher and libraries also write below HOME, whatever the profile is.
        let home = profile.path().to_string_lossy().into_owned();
        let options = LaunchOptions::default_builder()
            .path(Some(find_chromium().expect("no Chromium on PATH: run tests/setup.sh")))
            // Chromium chooses the port. By default the crate looks for a free port between 8000
            // and 9000, and two browsers that start together can find the same one.
            .port(Some(0))
            // Chromium refuses to run its sandbox as root, and many containers forbid it. The
            // browser opens only our own pages.
            .sandbox(false)
            .window_size(Some((1280, 800)))
            .user_data_dir(Some(profile.path().join("profile")))
            .process_envs(Some(HashMap::from([("HOME".to_owned(), home)])))
            .idle_browser_timeout(IDLE_MAX)
            .args(ARGS.iter().map(OsStr::new).collect())
            .build()
            .unwrap();
        let process = headless_chrome::Browser::new(options).unwrap();
        process.set_default_timeout(DEADLINE);
        let tab = process.new_tab().unwrap();
        tab.set_default_timeout(DEADLINE);
        let console = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&console);
        tab.add_event_listener(Arc::new(move |event: &Event| {
            if let Some(text) = complaint(event) {
                seen.lock().unwrap().push(text);
            }
        }))
        .unwrap();
        tab.enable_log().unwrap().enable_runtime().unwrap();
        Self { tab, console, process: Some(process), profile }
    }

    /// Opens `url` and waits until its modules have run. (`wait_until_navigated` waits for a quiet
    /// network instead, can miss it, and does not check that the page loaded.)
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.tab.navigate_to(url).unwrap();
        self.wait_for(&format!(
            "document.readyState === 'complete' && location.href === {}",
            json!(url)
        ));
    }

    /// Reloads the page.
    #[track_caller]
    pub fn reload(&self) {
        self.eval("void (window.isOld = true, location.reload())");
        self.wait_for("!window.isOld && document.readyState === 'complete'");
    }

    /// Returns the value of a JavaScript expression or promise; an exception fails the test.
    #[track_caller]
    pub fn eval(&self, expression: &str) -> Value {
        self.try_eval(expression).unwrap_or_else(|error| panic!("{error}\nin {expression}"))
    }

    /// `Tab::evaluate` drops exceptions and returns objects as handles, so this sends the protocol
    /// call itself.
    fn try_eval(&self, expression: &str) -> Result<Value, String> {
        let answer = self
            .tab
            .call_method(Evaluate {
                expression: expression.to_owned(),
                return_by_value: Some(true),
                await_promise: Some(true),
                object_group: None,
                include_command_line_api: None,
                silent: None,
                context_id: None,
                generate_preview: None,
                user_gesture: None,
                throw_on_side_effect: None,
                timeout: None,
                disable_breaks: None,
                repl_mode: None,
                allow_unsafe_eval_blocked_by_csp: None,
                unique_context_id: None,
                serialization_options: None,
            })
            .map_err(|error| error.to_string())?;
        match answer.exception_details {
            None => Ok(answer.result.value.unwrap_or_default()),
            Some(thrown) => Err(thrown
                .exception
                .and_then(|exception| exception.description)
                .unwrap_or(thrown.text)),
        }
    }

    /// Waits until a JavaScript expression is truthy and returns its value. The page polls every 20
    /// ms, so the result arrives soon after it becomes true. After a reload the wait starts again.
    #[track_caller]
    pub fn wait_for(&self, condition: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(SLICE);
            if left.is_zero() {
                let text = self.try_eval("document.body.innerText").unwrap_or_default();
                panic!(
                    "never true in {DEADLINE:?}: {condition}\npage text: {}\nconsole: {:#?}",
                    text.as_str().unwrap_or_default(),
                    self.console(),
                );
            }
            let look = format!(
                "new Promise((done) => {{
                    const end = performance.now() + {};
                    const look = () => {{
                        let value = null;
                        try {{ value = ({condition}); }} catch {{ /* not there yet */ }}
                        if (value || performance.now() >= end) done(value || null);
                        else setTimeout(look, 20);
                    }};
                    look();
                }})",
                left.as_millis()
            );
            match self.try_eval(&look) {
                Ok(Value::Null) => {}
                Ok(value) => return value,
                Err(error) if is_page_gone(&error) => {}
                Err(error) => panic!("{error}\nin {condition}"),
            }
        }
    }

    /// Waits until an element can be clicked (it is in the page, enabled and not covered, for
    /// example by a toast), then clicks it with the mouse. Retries if the layout moved the element
    /// before the click.
    #[track_caller]
    pub fn click(&self, element: &str) {
        self.hit(element, |x, y| {
            self.tab.click_point(Point { x, y }).unwrap();
        });
    }

    /// Taps an element with a finger; otherwise like [`Self::click`].
    #[track_caller]
    pub fn tap(&self, element: &str) {
        self.hit(element, |x, y| {
            let touch = |kind: &str, points: Value| {
                self.call::<DispatchTouchEvent>(json!({"type": kind, "touchPoints": points}));
            };
            touch("touchStart", json!([{"x": x, "y": y}]));
            touch("touchEnd", json!([]));
        });
    }

    #[track_caller]
    fn hit(&self, element: &str, act: impl Fn(f64, f64)) {
        let began = Instant::now();
        loop {
            let middle = self.wait_for(&format!(
                "(() => {{
                    const element = {element};
                    if (element.disabled || element.ariaDisabled === 'true') return null;
                    // In the middle, where no header or bar that sticks covers it.
                    element.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                    const box = element.getBoundingClientRect();
                    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                    if (!element.contains(document.elementFromPoint(x, y))) return null;
                    window.wasHit = false;
                    element.addEventListener('click', () => (window.wasHit = true), {{ once: true, capture: true }});
                    return [x, y];
                }})()"
            ));
            let [x, y] = [0, 1].map(|index: usize| middle[index].as_f64().unwrap());
            act(x, y);
            // A click that leads to another page also counts.
            let was_hit = self.wait_for("[window.wasHit !== false]");
            if was_hit[0] == true {
                return;
            }
            assert!(began.elapsed() < DEADLINE, "{element} cannot be clicked");
        }
    }

    /// Replaces the text of the field that `expression` selects.
    #[track_caller]
    pub fn type_into(&self, field: &str, text: &str) {
        self.wait_for(&format!(
            "(() => {{
                const field = {field};
                field.focus();
                field.select();
                return document.activeElement === field;
            }})()"
        ));
        self.type_text(text);
    }

    /// Types into the focused field.
    pub fn type_text(&self, text: &str) {
        self.tab.call_method(InsertText { text: text.to_owned() }).unwrap();
    }

    /// Chooses files for the file field that `selector` selects.
    pub fn choose_files(&self, selector: &str, files: &[&str]) {
        self.tab.find_element(selector).unwrap().set_input_files(files).unwrap();
    }

    /// Calls a method of the protocol with these parameters.
    #[track_caller]
    pub fn call<M>(&self, parameters: Value) -> M::ReturnObject
    where
        M: Method + Serialize + DeserializeOwned + Debug,
    {
        self.tab.call_method(serde_json::from_value::<M>(parameters).unwrap()).unwrap()
    }

    /// Presses a key, by its name, in the focused element.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.tab.press_key(key).unwrap();
    }

    /// Moves the focus to the element before.
    #[track_caller]
    pub fn press_shift_tab(&self) {
        self.tab.press_key_with_modifiers("Tab", Some(&[ModifierKey::Shift])).unwrap();
    }

    /// Resizes the window to a device's screen; `mobile` also applies a phone's rules for pages
    /// that are too wide.
    pub fn resize(&self, width: u32, height: u32, mobile: bool) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile
        });
        self.call::<SetDeviceMetricsOverride>(metrics);
    }

    /// Writes a screenshot of the window to a file of this name below `target/tmp`.
    pub fn take_picture(&self, name: &str) -> Result<PathBuf, Box<dyn Error>> {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let kind = CaptureScreenshotFormatOption::Png;
        std::fs::write(&file, self.tab.capture_screenshot(kind, None, None, true)?)?;
        Ok(file)
    }

    /// Returns the warnings and errors of the console.
    pub fn console(&self) -> Vec<String> {
        self.console.lock().unwrap().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or_default().replace("::", "-");
            match self.take_picture(&format!("{test}.png")) {
                Ok(file) => eprintln!("screenshot of the page: {}", file.display()),
                Err(error) => eprintln!("no screenshot: {error}"),
            }
        }
        // Closes the browser over the protocol, then kills its main process by its id.
        drop(self.process.take());
        let deadline = Instant::now() + END_MAX;
        while std::fs::remove_dir_all(self.profile.path()).is_err()
            && self.profile.path().exists()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        while let Some(left) = process_that_mentions(self.profile.path()) {
            if Instant::now() > deadline {
                if !std::thread::panicking() {
                    panic!("a process of the browser is still running: {left}");
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns the text of an exception, of an error that the page logs, or of an entry that the
/// browser logs, such as a failed load or content that a Content-Security-Policy refused.
fn complaint(event: &Event) -> Option<String> {
    match event {
        Event::LogEntryAdded(event) => {
            let entry = &event.params.entry;
            let level = format!("{:?}", entry.level);
            let is_about = entry.url.as_deref().unwrap_or_default();
            ["Error", "Warning"]
                .contains(&level.as_str())
                .then(|| format!("{level}: {} ({is_about})", entry.text))
        }
        Event::RuntimeExceptionThrown(event) => {
            let thrown = &event.params.exception_details;
            let what = thrown.exception.as_ref();
            let what = what.and_then(|exception| exception.description.clone());
            Some(format!("Exception: {}", what.unwrap_or_else(|| thrown.text.clone())))
        }
        Event::RuntimeConsoleAPICalled(event) => {
            let kind = format!("{:?}", event.params.Type);
            ["Error", "Warning", "Assert"]
                .contains(&kind.as_str())
                .then(|| format!("console.{kind}: {:?}", event.params.args))
        }
        _ => None,
    }
}

/// Matches Chromium's error for a page that is being replaced.
fn is_page_gone(error: &str) -> bool {
    [
        "context was destroyed",
        "Cannot find context",
        "Cannot find default execution context",
        "navigated or closed",
        "Promise was collected",
    ]
    .iter()
    .any(|sign| error.contains(sign))
}

fn find_chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    ["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)))
        .find(|file| file.is_file())
}

/// Returns the command line of a process that mentions `path`, such as the browser's profile.
/// Returns `None` on systems without `/proc`.
fn process_that_mentions(path: &Path) -> Option<String> {
    let path = path.to_string_lossy();
    let processes = std::fs::read_dir("/proc").ok()?;
    processes
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .find(|line| line.contains(&*path))
}
