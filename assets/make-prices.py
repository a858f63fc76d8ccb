#!/usr/bin/env python3
"""Writes `assets/prices.json`, `assets/prices-extra.json` and `tests/fixtures/prices-oracle.json`;
run it as `make prices`.

    python3 assets/make-prices.py [VERSION]

Takes the dated prices of the Python package `genai-prices` (its bundled data; the newest version
unless VERSION is given), installed into `target/prices-venv`, and converts them into the format
that `src/prices/json_format.rs` documents. The oracle holds costs computed by the package itself, for
the tests. A price that cannot be converted exactly stops the script, except for the cases that
ROUNDED and `unpriced` below describe; both are reported. So does a package that has changed its
format or names, or has far fewer models than before. `extra_prices.py` makes the second file.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import warnings
from decimal import ROUND_HALF_EVEN, Decimal

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / "target" / "prices-venv"
PRICES = ROOT / "assets" / "prices.json"
EXTRA = ROOT / "assets" / "prices-extra.json"
ORACLE = ROOT / "tests" / "fixtures" / "prices-oracle.json"
PACKAGE = "genai-prices"
REPOSITORY = "https://github.com/pydantic/genai-prices"
SIZE_LIMIT = 400_000

if os.environ.get("FLOWLEDGER_PRICES_VENV") != "1":
    # Start again with the interpreter that has the package.
    python = VENV / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    wanted = f"{PACKAGE}=={sys.argv[1]}" if len(sys.argv) > 1 else PACKAGE
    subprocess.run([python, "-m", "pip", "install", "-q", "--upgrade", wanted], check=True)
    # Only its price map is read, so that none of its dependencies are needed.
    only = ["--no-deps", "--upgrade", "litellm"]
    subprocess.run([python, "-m", "pip", "install", "-q", *only], check=True)
    os.environ["FLOWLEDGER_PRICES_VENV"] = "1"
    os.execv(python, [str(python), str(pathlib.Path(__file__).resolve())])

sys.dont_write_bytecode = True
import extra_prices
import genai_prices
from genai_prices import types
from genai_prices.data import providers as PROVIDERS

# Our names of the prices, by their upstream names.
RATES = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
}
# Prices of optional features that a ledger of text tokens does not count. These prices are left
# out; a model that has them keeps its token prices.
OPTIONAL = {
    "web_searches_kcount",  # tools
    "storage_searches_kcount",
    "input_audio_mtok",  # input other than text
    "input_image_mtok",
    "input_video_mtok",
    "cache_audio_read_mtok",
    "cache_image_read_mtok",
    "input_audio_hours",
}
# Billing units other than text tokens. With one of these, a cost computed from tokens would be too
# low, so the model gets no price at all.
PROHIBITIVE = {
    "input_mchars",
    "input_text_messages_kcount",
    "input_document_kpages",
    "input_annotated_document_kpages",
    "output_audio_mtok",
    "output_image_mtok",
    "output_video_mtok",
    "output_citation_mtok",
}
# Upstream prices with float noise (0.18000000000000002) or truncated quotients (0.0833333333333333)
# have at least this many fractional digits; they are rounded and reported. All others are exact.
ROUNDED = 14

# API patterns that are more than a plain host, with their hosts. `*` stands for one or more
# characters other than `/`. The script fails on an upstream pattern that is not listed here.
HOSTS = {
    r"https://bedrock-runtime\.[a-z0-9-]+\.amazonaws\.com(/|$)": ["bedrock-runtime.*.amazonaws.com"],
    r"(https?://)?([^.]*\.)?(?:openai\.azure\.com|azure-api\.net|cognitiveservices\.azure\.com|services\.ai\.azure\.com)": [
        "*.openai.azure.com",
        "*.azure-api.net",
        "*.cognitiveservices.azure.com",
        "*.services.ai.azure.com",
    ],
    r"https://api\.cloudflare\.com/client/v4/accounts/[^/]+/ai(?:/|$)": [
        "api.cloudflare.com/client/v4/accounts/*/ai"
    ],
    r"https://api\.cohere\.(?:ai|com)": ["api.cohere.ai", "api.cohere.com"],
    r"https://[^/]+\.(?:cloud\.databricks\.com|azuredatabricks\.net|gcp\.databricks\.com)/(?:serving-endpoints|ai-gateway)(?:/|$)": [
        f"*.{host}/{path}"
        for host in ("cloud.databricks.com", "azuredatabricks.net", "gcp.databricks.com")
        for path in ("serving-endpoints", "ai-gateway")
    ],
    r"https://api\.(?:(?:us|eu\.residency|in\.residency|sg\.residency)\.)?elevenlabs\.io(?:/|$)": [
        "api.elevenlabs.io"
    ],
    r"https://(.*\.)?googleapis\.com": ["googleapis.com", "*.googleapis.com"],
    r"https://api\.minimax(i)?\.(?:com|io)": [
        "api.minimax.com",
        "api.minimax.io",
        "api.minimaxi.com",
        "api.minimaxi.io",
    ],
    r"https://[^/]+\.modal\.(?:run|direct)(?:/|$)": ["*.modal.run", "*.modal.direct"],
    r"https://api\.moonshot\.": ["api.moonshot.ai", "api.moonshot.cn"],
    r"https://(api\.)?openrouter\.ai": ["openrouter.ai", "api.openrouter.ai"],
}

# The package's names that this script uses.
TYPES = {
    "ClauseRegex", "ClauseOr", "ClauseAnd", "ConditionalPrice", "ModelPrice", "StartDateConstraint",
    "TieredPrices", "TimeOfDateConstraint",
}  # fmt: skip
FIELDS = {
    "id", "name", "api_pattern", "provider_match", "model_match", "fallback_model_providers", "models",
}  # fmt: skip
# Providers that must exist, with their least number of models.
EXPECTED = {
    "openai": 60, "anthropic": 15, "google": 30, "azure": 10, "aws": 60, "mistral": 30,
    "deepseek": 4, "x-ai": 10, "groq": 15, "openrouter": 400, "perplexity": 10, "together": 50,
}  # fmt: skip
MODELS_MIN, MODELS_MAX = 1_500, 10_000
# The largest part of the previous models that one update may remove.
LOST_MAX = 0.2

# Other makers' models are offered there at prices of its own; upstream takes the makers' prices, for
# example DeepSeek's with its hours. Models of OpenAI and Anthropic have their makers' prices at Azure:
# https://azure.microsoft.com/en-us/pricing/details/cognitive-services/openai-service/ and
# https://platform.claude.com/docs/en/build-with-claude/claude-in-microsoft-foundry
FALLBACKS = {"azure": ["openai", "anthropic"]}


def fail(text):
    sys.exit(f"make-prices: {text}")


def check_package():
    """Stops the script if the package has changed its format or names."""
    missing = sorted(name for name in TYPES if not hasattr(types, name))
    missing += sorted(name for name in FIELDS if not hasattr(PROVIDERS[0], name))
    missing += [name for name in ("calc_price", "Usage") if not hasattr(genai_prices, name)]
    if missing:
        fail(f"{PACKAGE} has no {', '.join(missing)} any more; its format has changed")
    models = {p.id: len(p.models) for p in PROVIDERS}
    for name, least in EXPECTED.items():
        if models.get(name, 0) < least:
            fail(f"{PACKAGE} has {models.get(name, 0)} models of {name}; expected {least} or more")
    total = sum(models.values())
    if not MODELS_MIN <= total <= MODELS_MAX:
        fail(f"{PACKAGE} has {total} models; expected {MODELS_MIN} to {MODELS_MAX}")
    if PRICES.exists():
        before = sum(len(p["models"]) for p in json.loads(PRICES.read_text())["providers"])
        if total < before * (1 - LOST_MAX):
            fail(f"{PACKAGE} has {total} models; the previous table has {before}")


def fallbacks(provider):
    return FALLBACKS.get(provider.id, provider.fallback_model_providers or ())


def hosts(provider):
    pattern = provider.api_pattern
    found = HOSTS.get(pattern)
    if found is None:
        plain = re.sub(r"\((?:\?:)?/\|\$\)$", "", pattern.removeprefix("https://"))
        if not re.fullmatch(r"(?:[a-z0-9/-]|\\\.)+", plain):
            fail(f"provider {provider.id}: unknown host pattern {pattern!r}; add it to HOSTS")
        found = [plain.replace("\\.", ".")]
    for host in found:
        url = "https://" + host.replace("*", "name-1")
        if not re.match(pattern, url if "/" in host else url + "/v1"):
            fail(f"provider {provider.id}: host {host} does not match {pattern!r}")
    return found


# Clauses: `=text` equals, `^text` starts with, `$text` ends with, `~text` contains, `#mask` where
# `#` is a digit and a `*` at the end is anything; a list is "any of"; {"and"}, {"not"}. Lower case.

DIGIT, END = "#", "\0"


def expand(tree):
    """Returns all texts that a parsed regex matches: DIGIT is any digit, END the end of the text."""
    texts = [""]
    for op, arg in tree:
        op = str(op)
        if op == "LITERAL" and chr(arg) not in "#*\0":
            piece = [chr(arg)]
        elif op == "IN" and [(str(o), str(a)) for o, a in arg] == [("CATEGORY", "CATEGORY_DIGIT")]:
            piece = [DIGIT]
        elif op == "IN" and all(str(o) == "LITERAL" for o, _ in arg):
            piece = list(dict.fromkeys(chr(a).lower() for _, a in arg))
        elif op == "MAX_REPEAT" and arg[1] <= 8:
            piece = [
                text
                for count in range(arg[0], arg[1] + 1)
                for text in expand(list(arg[2]) * count)
            ]
        elif op == "SUBPATTERN":
            piece = expand(arg[3])
        elif op == "BRANCH":
            piece = [text for branch in arg[1] for text in expand(branch)]
        elif op == "AT" and str(arg) == "AT_END":
            piece = [END]
        else:
            raise ValueError(f"unsupported operation {op} {arg}")
        texts = [text + more for text in texts for more in piece]
    return texts


def regex_clause(regex):
    """Returns clauses equivalent to `regex`, which upstream searches in the lowercase name."""
    tree = list(re._parser.parse(regex))
    if not tree or (str(tree[0][0]), str(tree[0][1])) != ("AT", "AT_BEGINNING"):
        raise ValueError("not anchored at the start")
    tree = tree[1:]
    forbidden = []
    if tree and str(tree[0][0]) == "ASSERT_NOT":
        (direction, inner), tree = tree[0][1], tree[1:]
        inner = list(inner)
        if direction == 1 and str(inner[0]).startswith("(MAX_REPEAT, (0, MAXREPEAT, [(ANY"):
            # (?!.*text): contains it nowhere.
            for text in expand(inner[1:]):
                forbidden.append("$" + text[:-1] if text.endswith(END) else "~" + text)
        elif regex.startswith("^(?![^/]+/)") and tree:
            # No `/` after a first part. The rest of the regex requires a non-empty first part.
            forbidden.append("~/")
        else:
            raise ValueError("unsupported lookahead")
    wanted = []
    for text in expand(tree) if tree else []:
        ended = text.endswith(END)
        text = text.removesuffix(END)
        if text != text.lower() or END in text:
            raise ValueError("contains upper case, or an end that is not last")
        if DIGIT in text:
            wanted.append("#" + text + ("" if ended else "*"))
        else:
            wanted.append(("=" if ended else "^") + text)
    nots = [{"not": forbidden[0] if len(forbidden) == 1 else forbidden}] if forbidden else []
    wants = [wanted[0] if len(wanted) == 1 else wanted] if wanted else []
    both = nots + wants
    return both[0] if len(both) == 1 else {"and": both}


def clause(upstream):
    if upstream is None:
        return None
    if isinstance(upstream, types.ClauseRegex):
        try:
            converted = regex_clause(upstream.regex)
        except ValueError as error:
            # Omitting a clause could assign a name to another model, at a wrong price.
            fail(f"cannot convert the regex {upstream.regex!r}: {error}")
        check_regex(upstream, converted)
        return converted
    for name, mark in ("equals", "="), ("starts_with", "^"), ("ends_with", "$"), ("contains", "~"):
        if hasattr(upstream, name):
            return mark + getattr(upstream, name).lower()
    if isinstance(upstream, types.ClauseOr):
        flat = []
        for inner in map(clause, upstream.or_):
            flat.extend(inner if isinstance(inner, list) else [inner])
        flat = list(dict.fromkeys(c for c in flat if isinstance(c, str))) + [
            c for c in flat if not isinstance(c, str)
        ]
        return flat[0] if len(flat) == 1 else flat
    return {"and": [clause(inner) for inner in upstream.and_]}


def matches(converted, text):
    """Evaluates a clause as `prices.rs` does, to check the conversion."""
    if isinstance(converted, list):
        return any(matches(inner, text) for inner in converted)
    if isinstance(converted, dict):
        if "and" in converted:
            return all(matches(inner, text) for inner in converted["and"])
        return not matches(converted["not"], text)
    mark, rest = converted[0], converted[1:]
    if mark == "#":
        open_end = rest.endswith("*")
        rest = rest.removesuffix("*")
        fits = all(a.isdigit() if b == "#" else a == b for a, b in zip(text, rest))
        return fits and (len(text) >= len(rest) if open_end else len(text) == len(rest))
    return {
        "=": text == rest,
        "^": text.startswith(rest),
        "$": text.endswith(rest),
        "~": rest in text,
    }[mark]


def check_regex(upstream, converted):
    """Compares both forms on texts close to the regex: they must agree on each."""
    chance = random.Random(0)
    seeds = re.findall(r'[#^=$~]([^"]+)"', json.dumps(converted))
    # The ids of all models test that the converted clause does not match too much.
    texts = [m.id.lower() for p in PROVIDERS for m in p.models]
    for seed in seeds:
        filled = [seed.rstrip("*").replace("#", str(n)) for n in (0, 7)]
        for text in filled:
            texts += [text, text[:-1], text + "0", text + "-x", "x" + text, "a/" + text, "/" + text]
            texts += [text + end for end in ("-tts", "-tts-1", "-ttsx", "/b", "@20260101", "-001")]
            texts += [text[:i] + chance.choice("a0-/.") + text[i + 1 :] for i in range(len(text))]
    for text in texts:
        if upstream.is_match(text) != matches(converted, text):
            fail(f"{converted} and {upstream.regex!r} differ for {text!r}")


rounded = []


def integer(usd_per_million, where):
    """Converts USD per million units to pico-dollars per unit."""
    exact = usd_per_million * 1_000_000
    whole = exact.to_integral_value(ROUND_HALF_EVEN)
    if exact != whole:
        if -usd_per_million.as_tuple().exponent < ROUNDED:
            fail(f"{where}: {usd_per_million} is not a whole number of micro-dollars")
        rounded.append(f"{where}: {usd_per_million} as {whole}")
    return int(whole)


def known(upstream):
    return {key: value for key, value in upstream.__dict__.items() if value is not None}


def unpriced(model, prices):
    """Returns the reason why a model gets no price, or None."""
    keys = prices.keys()
    if not keys:
        # Upstream has an empty price for free models as well as for unknown prices.
        return None if model.id.endswith(":free") else "no price"
    prohibitive = keys & PROHIBITIVE
    if "audio_hours" in keys and "input_audio_hours" not in keys:
        prohibitive = prohibitive | {"audio_hours"}
    if prohibitive:
        return "also billed by " + ", ".join(sorted(prohibitive))
    if not keys & {"input_mtok", "output_mtok"}:
        return "not billed by tokens: " + ", ".join(sorted(keys))
    return None


def price(model, upstream, constraint, where):
    given = known(upstream)
    out = {}
    if isinstance(constraint, types.StartDateConstraint):
        out["from"] = constraint.start_date.isoformat()
    elif isinstance(constraint, types.TimeOfDateConstraint):
        times = [types._utc_timetz(t) for t in (constraint.start_time, constraint.end_time)]
        if any(t.second or t.microsecond for t in times):
            fail(f"{where}: the time of day is not a whole minute")
        out["daily"] = [t.hour * 60 + t.minute for t in times]
    elif constraint is not None:
        fail(f"{where}: unknown constraint {constraint!r}")
    if not given:
        return out | {"input": 0, "output": 0}
    strange = given.keys() - RATES.keys() - OPTIONAL - {"requests_kcount", "audio_hours"}
    if strange:
        fail(f"{where}: unknown prices {sorted(strange)}")
    rates = {ours: given[theirs] for theirs, ours in RATES.items() if theirs in given}
    starts = sorted(
        {t.start for r in rates.values() if isinstance(r, types.TieredPrices) for t in r.tiers}
    )

    def rate(value, name, length):
        # Upstream: the highest tier that starts below the prompt's length sets the price of every
        # token.
        if isinstance(value, types.TieredPrices):
            chosen = value.base
            for tier in value.tiers:
                if length > tier.start:
                    chosen = tier.price
            value = chosen
        return integer(value, f"{where} {name}")

    out |= {name: rate(value, name, 0) for name, value in rates.items()}
    if "requests_kcount" in given:
        # USD per thousand requests are milli-dollars per request.
        out["request"] = integer(given["requests_kcount"] * 1000, where)
    if starts:
        out["tiers"] = [
            {"above": start} | {name: rate(value, name, start + 1) for name, value in rates.items()}
            for start in starts
        ]
    return out


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def convert():
    lines, skipped = [], []
    ids = [p.id for p in PROVIDERS]
    dropped = set()
    for provider in PROVIDERS:
        models, priced = [], 0
        for model in provider.models:
            where = f"{provider.id} {model.id}"
            all_of_it = versions(model)
            reason = next(filter(None, (unpriced(model, known(v.prices)) for v in all_of_it)), None)
            entry = {"id": model.id}
            match = clause(model.match)
            if match != "=" + model.id.lower():
                entry["match"] = match
            if reason:
                # Keep the model without prices, so that a later model does not match its names.
                skipped.append(f"{where}: {reason}")
                entry["prices"] = []
            else:
                priced += 1
                entry["prices"] = [price(model, v.prices, v.constraint, where) for v in all_of_it]
            models.append(compact(entry))
        if not priced:
            dropped.add(provider.id)
            continue
        head = {"id": provider.id, "hosts": hosts(provider)}
        for name, value in (
            ("name_match", clause(provider.provider_match)),
            ("model_match", clause(provider.model_match)),
            ("fallback", [p for p in fallbacks(provider) if p in ids] or None),
        ):
            if value is not None:
                head[name] = value
        lines.append(compact(head)[:-1] + ',"models":[\n' + ",\n".join(models) + "\n]}")
    if dropped & {f for p in PROVIDERS for f in fallbacks(p)}:
        fail("a provider without prices is the fallback of another provider")
    return lines, skipped


def text_of(lines, retrieved):
    source = {
        "package": PACKAGE,
        "version": genai_prices.__version__,
        "repository": REPOSITORY,
        "license": "MIT, Copyright (c) Pydantic Services Inc. 2025 to present",
        "retrieved": retrieved,
    }
    about = "Made by assets/make-prices.py; src/prices/json_format.rs describes the format. Prices are pico-dollars per token (micro-dollars per million tokens) and per request."
    return (
        '{"about":' + compact(about) + ',\n"source":' + compact(source)
        + ',\n"rounded":[\n' + ",\n".join(map(compact, rounded)) + '\n],\n"providers":[\n'
        + ",\n".join(lines) + "\n]}\n"
    )  # fmt: skip


# Provider, its address or none, model, time, and the counts: input, cache read, cache write, the
# part of it kept for an hour, output, reasoning. For a custom provider name, the address counts.
NOON = "2026-11-22T12:00:00Z"
CASES = [
    ("openai", None, "gpt-4o-2024-08-06", NOON, 1000, 0, 0, 0, 500, 0),
    ("openai", None, "gpt-4o", NOON, 123_457, 100_000, 0, 0, 7_891, 0),
    ("openai", None, "gpt-4o-mini", NOON, 1, 0, 0, 0, 1, 0),
    ("openai", None, "gpt-4o-mini", NOON, 3, 1, 0, 0, 0, 0),
    ("openai", None, "GPT-4.1-nano", NOON, 999_999, 333_333, 0, 0, 77_777, 0),
    ("openai", None, "o1-2024-12-17", NOON, 2_000, 0, 0, 0, 9_000, 8_500),
    ("openai", None, "o3", "2025-06-09T23:59:59Z", 2_000, 500, 0, 0, 9_000, 8_500),
    ("openai", None, "o3", "2025-06-10T00:00:00Z", 2_000, 500, 0, 0, 9_000, 8_500),
    ("openai", None, "gpt-5.2-20251211", NOON, 10_000, 8_000, 0, 0, 600, 100),
    ("openai", None, "gpt-5.5", NOON, 272_000, 200_000, 0, 0, 3_333, 0),
    ("openai", None, "gpt-5.5", NOON, 272_001, 200_000, 0, 0, 3_333, 0),
    ("openai", None, "gpt-5.6-sol-2026-07-01", NOON, 300_000, 100_000, 50_000, 0, 1_000, 0),
    ("openai", None, "text-embedding-3-small", NOON, 12_345, 0, 0, 0, 0, 0),
    ("openai", None, "no-such-model", NOON, 1, 0, 0, 0, 1, 0),
    ("openai", None, "whisper-1", NOON, 1, 0, 0, 0, 1, 0),
    ("anthropic", None, "claude-sonnet-4-5-20250929", NOON, 200_000, 0, 0, 0, 1_000, 0),
    ("anthropic", None, "claude-sonnet-4-5-20250929", NOON, 200_001, 150_000, 30_000, 10_000, 1_000, 400),
    ("anthropic", None, "claude-3-5-haiku-latest", NOON, 50_000, 40_000, 9_000, 0, 2_000, 0),
    ("anthropic", None, "claude-opus-4-5", NOON, 50_000, 40_000, 9_000, 9_000, 2_000, 0),
    ("anthropic", None, "claude-haiku-5-5", NOON, 100_001, 40_000, 9_000, 3_000, 2_000, 0),
    ("anthropic", None, "claude-2", NOON, 50_000, 40_000, 9_000, 1_000, 2_000, 0),
    ("gemini", None, "gemini-2.5-pro", NOON, 200_001, 100_000, 0, 0, 4_000, 3_000),
    ("google", None, "gemini-2.5-flash", NOON, 31, 7, 0, 0, 11, 0),
    ("google", None, "gemini-2.5-pro-tts", NOON, 100, 0, 0, 0, 200, 0),
    ("mine", "https://api.groq.com/openai/v1", "llama-3.3-70b-versatile", NOON, 777, 0, 0, 0, 333, 0),
    ("mine", "https://openrouter.ai/api/v1", "openai/gpt-4o", NOON, 4_321, 1_000, 0, 0, 99, 0),
    ("mine", "https://openrouter.ai/api/v1", "deepseek/deepseek-r1:free", NOON, 9, 0, 0, 0, 9, 0),
    ("mine", "https://me.openai.azure.com/openai/v1", "gpt-4.1-mini-2025-04-14", NOON, 5_555, 0, 0, 0, 66, 0),
    ("mine", "https://router.huggingface.co/novita/v3/openai", "deepseek-ai/DeepSeek-R1", NOON, 5_555, 0, 0, 0, 66, 0),
    ("mine", "https://bedrock-runtime.eu-west-1.amazonaws.com", "amazon.nova-pro-v1:0", NOON, 5_555, 5_000, 0, 0, 66, 0),
    ("litellm", None, "anthropic/claude-3-haiku-20240307", NOON, 5_555, 5_000, 500, 0, 66, 0),
    ("litellm", None, "mistral-large-latest", NOON, 5_555, 0, 0, 0, 66, 0),
    ("mistral", None, "mistral-small-latest", NOON, 64_001, 0, 0, 0, 1_003, 0),
    ("xai", None, "grok-4-0709", NOON, 128_001, 64_000, 0, 0, 1_003, 900),
    ("deepseek", None, "deepseek-chat", "2025-03-01T00:29:59Z", 64_001, 1_000, 0, 0, 1_003, 0),
    ("deepseek", None, "deepseek-chat", "2025-03-01T00:30:00Z", 64_001, 1_000, 0, 0, 1_003, 0),
    ("deepseek", None, "deepseek-v4-flash", "2026-09-11T03:59:59.999Z", 64_001, 1_000, 0, 0, 1_003, 0),
    ("deepseek", None, "deepseek-v4-flash", "2026-09-11T04:00:00Z", 64_001, 1_000, 0, 0, 1_003, 0),
    ("perplexity", None, "sonar-pro", NOON, 17, 0, 0, 0, 1_000, 0),
    ("nobody", None, "gpt-4o", NOON, 1, 0, 0, 0, 1, 0),
]  # fmt: skip


# Limits the oracle's models with tiers, with dated prices, and all others. Models with prices by
# the time of day or for each request are all included.
TIERED, DATED, OTHERS = 40, 30, 60


def versions(model):
    if isinstance(model.prices, types.ModelPrice):
        return [types.ConditionalPrice(prices=model.prices)]
    return model.prices


def starts(version):
    tiered = (p for p in known(version.prices).values() if isinstance(p, types.TieredPrices))
    return {tier.start for prices in tiered for tier in prices.tiers}


def spread(chance, prompt, answer):
    """Splits the prompt into cached parts and the answer into reasoning and text."""
    read = chance.randint(0, prompt)
    write = chance.randint(0, prompt - read)
    return prompt, read, write, chance.randint(0, write), answer, chance.randint(0, answer)


def generated():
    """Yields more cases; the same prices always yield the same cases."""
    chance = random.Random(20_251_204)
    tiered, dated, others = [], [], []
    for provider in PROVIDERS:
        for model in provider.models:
            place = (provider.id, None, model.id)
            all_of_it = versions(model)
            constraints = [version.constraint for version in all_of_it]
            if any(isinstance(c, types.TimeOfDateConstraint) for c in constraints):
                for constraint in constraints:
                    if isinstance(constraint, types.TimeOfDateConstraint):
                        for edge in (constraint.start_time, constraint.end_time):
                            moment = datetime.datetime.combine(
                                datetime.date(2026, 11, 22), types._utc_timetz(edge)
                            )
                            for at in (moment - datetime.timedelta(milliseconds=1), moment):
                                yield *place, iso(at), *spread(chance, 70_000, 3_000)
            if any("requests_kcount" in known(version.prices) for version in all_of_it):
                yield *place, NOON, *spread(chance, 0, 0)
                yield *place, NOON, *spread(chance, chance.randint(1, 9_999), 777)
            if any(starts(version) for version in all_of_it):
                tiered.append((place, sorted(set().union(*map(starts, all_of_it)))))
            elif any(isinstance(c, types.StartDateConstraint) for c in constraints):
                days = [c.start_date for c in constraints if isinstance(c, types.StartDateConstraint)]
                dated.append((place, days))
            else:
                others.append(place)
    for place, above in chance.sample(tiered, TIERED):
        for start in above:
            yield *place, NOON, *spread(chance, start, 4_321)
            yield *place, NOON, *spread(chance, start + 1, 4_321)
        yield *place, NOON, *spread(chance, above[-1] * 3 + 7, 99_999)
    for place, days in chance.sample(dated, DATED):
        for day in days:
            moment = datetime.datetime.combine(day, datetime.time(0), datetime.timezone.utc)
            usage = spread(chance, chance.randint(1, 99_999), chance.randint(1, 9_999))
            yield *place, iso(moment - datetime.timedelta(milliseconds=1)), *usage
            yield *place, iso(moment), *usage
    for place in chance.sample(others, OTHERS):
        # Few tokens test the rounding; many test that no digit is lost.
        yield *place, NOON, *spread(chance, chance.randint(0, 9), chance.randint(0, 9))
        yield *place, NOON, *spread(chance, chance.randint(0, 10**9), chance.randint(0, 10**9))


def iso(moment):
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Intended differences from the package, with reasons.
ROUNDED_ONCE = "the package's total, which is not rounded, to nano-dollars, half to even"
DEVIATIONS = {
    "unpriced": "the model also bills what a ledger of tokens does not count, or nothing is known of its price; the package computes what tokens it has a price for, here the cost is unknown",
    "days": "the peak hours of DeepSeek apply from Monday to Friday, and the package has them on all days; the cost is that of its other hours",
    "moved alias": "the alias has selected Mistral Large 3 since 2025-12-02, and the package has the price of the former model; the cost is that of mistral-large-2512",
    "other maker": "Azure offers the model at a price of its own, and the package takes the maker's; the cost is unknown or from the second source",
    "rounded": "a price upstream is a cut quotient or a float's noise, here it is whole pico-dollars a token; hence the costs may differ by within_nanousd",
}


# The day on which `mistral-large-latest` began to select Mistral Large 3.
MISTRAL_3 = datetime.datetime(2025, 12, 2, tzinfo=datetime.timezone.utc)


def corrected(name, url, model, moment):
    """Returns why the package's price is wrong, and a call that it prices rightly, if any."""
    if name == "azure" or (url and "azure" in url):
        provider = next(p for p in PROVIDERS if p.id == "azure")
        if not any(p.find_model(model) for p in PROVIDERS if p.id in ("azure", *FALLBACKS["azure"])):
            if any(p.find_model(model) for p in PROVIDERS if p.id in provider.fallback_model_providers):
                return "other maker", None
    if name == "deepseek" and model.startswith(("deepseek-v4", "deepseek-flash")):
        is_weekend = moment.weekday() >= 5
        if is_weekend and any(start <= moment.hour < end for start, end in ((1, 4), (6, 10))):
            return "days", (model, moment.replace(hour=12))
    if model == "mistral-large-latest" and moment >= MISTRAL_3:
        return "moved alias", ("mistral-large-2512", moment)
    return None, (model, moment)


def oracle():
    out = []
    for name, url, model, at, total, read, write, hour, output, reasoning in [*CASES, *generated()]:
        usage = genai_prices.Usage(
            input_tokens=total,
            cache_read_tokens=read,
            cache_write_tokens=write,
            cache_write_1h_tokens=hour,
            output_tokens=output,
            output_reasoning_tokens=reasoning,
        )
        where = {"provider_api_url": url} if url else {"provider_id": name}
        moment = datetime.datetime.fromisoformat(at)
        why, call = corrected(name, url, model, moment)
        deviation = {"deviation": why} if why else {}
        try:
            if call is None:
                raise LookupError
            asked, moment = call
            found = genai_prices.calc_price(usage, asked, genai_request_timestamp=moment, **where)
        except LookupError:
            cost = None
        else:
            cost = int((found.total_price * 10**9).to_integral_value(ROUND_HALF_EVEN))
            if any(unpriced(found.model, known(v.prices)) for v in versions(found.model)):
                cost = None
                deviation = {"deviation": "unpriced"}
            elif any(line.startswith(f"{found.provider.id} {found.model.id} ") for line in rounded):
                # Half a pico-dollar per token, plus the rounding of the total.
                within = (total + output) // 2_000 + 1
                deviation = {"deviation": "rounded", "within_nanousd": within}
        out.append(
            {
                "provider": name,
                "base_url": url,
                "model": model,
                "at": at,
                "usage": {
                    "input_tokens": total,
                    "cached_input_tokens": read,
                    "cache_write_tokens": write,
                    "output_tokens": output,
                    "reasoning_tokens": reasoning,
                    "usage_source": "provider",
                },
                "hour_write_tokens": hour,
                "cost_nanousd": cost,
            }
            | deviation
        )
    head = f"Costs by {PACKAGE} {genai_prices.__version__}; made by python3 assets/make-prices.py"
    return (
        '{"about":' + compact(head) + ',\n"rounding":' + compact(ROUNDED_ONCE)
        + ',\n"deviations":' + compact(DEVIATIONS)
        + ',\n"cases":[\n' + ",\n".join(map(compact, out)) + "\n]}\n"
    )  # fmt: skip


def is_known(provider, model):
    """Returns whether genai-prices has the model at the provider of ours."""
    ids = [provider, *FALLBACKS.get(provider, ())]
    return any(p.id in ids and p.find_model(model.lower()) for p in PROVIDERS)


def extra(today):
    """Returns the text of the second file, and the entries of its source that are left out."""
    package = importlib.metadata.distribution("litellm")
    name = "litellm/model_prices_and_context_window_backup.json"
    file = next((file for file in package.files if str(file) == name), None)
    if file is None:
        fail(f"litellm has no {name} any more")
    models = extra_prices.load(file.locate().read_text(encoding="utf-8"))
    before = json.loads(EXTRA.read_text()) if EXTRA.exists() else {}
    return extra_prices.document(models, package.version, is_known, today, before)


def main():
    warnings.simplefilter("error")
    check_package()
    lines, skipped = convert()
    today = datetime.date.today().isoformat()
    text = text_of(lines, today)
    if PRICES.exists():
        # Unchanged prices keep their date, and the file stays unchanged.
        before = json.loads(PRICES.read_text())["source"]["retrieved"]
        if text_of(lines, before) == PRICES.read_text():
            text = text_of(lines, before)
    if len(text.encode()) > SIZE_LIMIT:
        fail(f"{PRICES.name} has {len(text.encode())} bytes; the limit is {SIZE_LIMIT}")
    extra_text, extra_skipped = extra(today)
    skipped += extra_skipped
    costs = oracle()
    json.loads(text), json.loads(extra_text), json.loads(costs)
    # Only after everything succeeded, so that the files stay consistent.
    PRICES.write_text(text)
    EXTRA.write_text(extra_text)
    ORACLE.parent.mkdir(parents=True, exist_ok=True)
    ORACLE.write_text(costs)
    variants = sum(bool(m.price_variants) for p in PROVIDERS for m in p.models)
    for title, reported in ("rounded", rounded), ("without a price", skipped):
        print(f"{title}: {len(reported)}")
        for line in reported:
            print(f"  {line}")
    print(f"models with batch or priority prices (only the standard price is kept): {variants}")
    print(f"{PRICES.relative_to(ROOT)}: {len(text.encode())} bytes, {len(lines)} providers")


main()
