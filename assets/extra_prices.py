#!/usr/bin/env python3
"""The second source of prices, for `assets/prices-extra.json`.

    python3 assets/extra_prices.py LITELLM_JSON

checks the price map of the Python package `litellm` (MIT) and prints the entries that are taken
from it. `make-prices.py` calls `document`, which adds the corrections below. An entry has the page
on which the maker publishes the price, and the date on which the price was read.

A price map in another format, or with far fewer models, stops the script with status 1.
"""

import datetime
import json
import re
import sys
from decimal import Decimal

MODELS_MIN, MODELS_MAX = 2_000, 20_000

# By the map's name of a provider: our provider, its hosts in addition to those of genai-prices, the
# prefix of its models in the map, the least number of models with usable prices, and the pages that
# count as the maker's own. A model that genai-prices lists is not taken.
PROVIDERS = {
    # Prices of Singapore; other regions have others. https://www.alibabacloud.com/help/en/model-studio/compatibility-of-openai-with-dashscope
    "dashscope": ("dashscope-intl", ["dashscope-intl.aliyuncs.com"], "dashscope/", 15, r"alibabacloud\.com/"),
    # https://docs.together.ai/docs/inference/openai-compatibility
    "together_ai": ("together", ["api.together.ai"], "together_ai/", 10, r"together\.ai/"),
    "azure_ai": ("azure", [], "azure_ai/", 15, r"^https://(prices\.azure|azure\.microsoft|marketplace\.microsoft|techcommunity\.microsoft)\.com/"),
    "mistral": ("mistral", [], "mistral/", 5, r"mistral\.ai/"),
    "zai": ("zai", [], "zai/", 2, r"docs\.z\.ai/"),
    "openai": ("openai", [], "ft:", 2, r"developers\.openai\.com/"),
}  # fmt: skip
# The first one's price depends on the mode, which the price map does not say: thinking costs more.
# The other one is an alias with the price of a former model.
UNCERTAIN = {"dashscope/qwen-plus", "azure_ai/mistral-large-latest"}

RATES = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "output_cost_per_token": "output",
}
SIDES = {"input_cost_per_token", "output_cost_per_token"}
# Prices of other processing, of tools and of other input, which have no part in standard prices of
# text.
IGNORED = re.compile(
    r"_(batches|flex|priority)$|^search_context_cost_per_query$|uplift_multiplier|"
    r"^(input|cache_read_input|cache_creation_input)_\w*(audio|image|video)\w*cost|"
    r"^input_cost_per_(audio|image|video)|^explicit_cache_read"
)
LENGTH = re.compile(r"(\w+)_above_(\d+)k_tokens$")

MISTRAL_PRICES = "https://mistral.ai/pricing#api, https://github.com/simonw/llm-prices/pull/63"
DEEPSEEK_PRICES = "https://api-docs.deepseek.com/quick_start/pricing"
# The peak hours of DeepSeek, and the days on which they apply since 2026-08-23 in China.
PEAK_HOURS = [[60, 240], [360, 600]]
WEEKDAYS = [1, 2, 3, 4, 5]
PEAKS_BEGAN, WEEKENDS_BEGAN = "2026-08-16T16:00:00Z", "2026-08-22T16:00:00Z"


def rates(read, cached, output):
    return {"input": read, "cache_read": cached, "output": output}


def peaks(start, days, *off_peak):
    """Returns off-peak prices from a moment on, and the peak prices, which are twice as high."""
    start = {"from": start} if start else {}
    days = {"days": days} if days else {}
    peak = rates(*(2 * price for price in off_peak))
    return [start | rates(*off_peak)] + [start | {"daily": d} | days | peak for d in PEAK_HOURS]


# Prices that genai-prices has wrong, with their whole history: aliases whose model changed, and
# hours that apply on certain days only.
CORRECTIONS = {
    "mistral": [
        {
            "id": "mistral-large-latest",
            "prices": [
                {"input": 2_000_000, "output": 6_000_000},
                {"from": "2025-12-02"} | rates(500_000, 50_000, 1_500_000),
            ],
            "source": MISTRAL_PRICES,
            "date": "2026-06-17",
        },
        {
            "id": "ministral-3b-latest",
            "prices": [
                {"input": 40_000, "output": 40_000},
                {"from": "2025-12-02"} | rates(100_000, 10_000, 100_000),
            ],
            "source": MISTRAL_PRICES,
            "date": "2026-06-17",
        },
        # The date of the change is not known; from this day on litellm has the new price.
        {
            "id": "magistral-medium-latest",
            "prices": [
                {"input": 2_000_000, "output": 5_000_000},
                {"from": "2026-11-30"} | rates(1_500_000, 150_000, 7_500_000),
            ],
            "source": "https://docs.mistral.ai/models/model-cards/mistral-medium-3-5-26-04",
            "date": "2026-11-30",
        },
        {
            "id": "magistral-small-latest",
            "prices": [
                {"input": 500_000, "output": 1_500_000},
                {"from": "2026-11-30"} | rates(150_000, 15_000, 600_000),
            ],
            "source": "https://docs.mistral.ai/models/model-cards/mistral-small-4-0-26-03",
            "date": "2026-11-30",
        },
    ],
    # Moderation models are free, also with images.
    "openai": [
        {
            "id": "moderation",
            "match": "~moderation",
            "prices": [{"input": 0, "output": 0}],
            "source": "https://developers.openai.com/api/docs/models/omni-moderation-latest",
            "date": "2026-11-30",
        },
    ],
    "deepseek": [
        {
            "id": "deepseek-flash",
            "prices": peaks(None, WEEKDAYS, 150_000, 3_000, 600_000),
            "source": DEEPSEEK_PRICES,
            "date": "2026-11-15",
        },
        {
            "id": "deepseek-v4-flash",
            "match": "^deepseek-v4-flash",
            "prices": [rates(140_000, 2_800, 280_000)]
            + peaks(PEAKS_BEGAN, None, 220_000, 7_000, 660_000)
            + peaks(WEEKENDS_BEGAN, WEEKDAYS, 220_000, 7_000, 660_000)
            + peaks("2026-09-10", WEEKDAYS, 150_000, 3_000, 600_000),
            "source": DEEPSEEK_PRICES,
            "date": "2026-11-15",
        },
        {
            "id": "deepseek-v4-pro",
            "match": "^deepseek-v4-pro",
            "prices": [rates(435_000, 3_625, 870_000)]
            + peaks(PEAKS_BEGAN, None, 660_000, 22_000, 1_980_000)
            + peaks(WEEKENDS_BEGAN, WEEKDAYS, 660_000, 22_000, 1_980_000),
            "source": DEEPSEEK_PRICES,
            "date": "2026-11-15",
        },
    ],
}
VERTEX_MULTI_REGIONS = ["aiplatform.*.rep.googleapis.com", "*.rep.googleapis.com"]
# DashScope bills cache reads and writes at other prices than the rest of a prompt, and the map lacks
# some of them.
WITHOUT_CACHE_FALLBACK = {"dashscope-intl"}
HOSTS = {"openai": ["*.api.openai.com"]}

# "Data residency endpoints are charged a 10% uplift for models released on or after March 5, 2026."
# The models without it are those that were released before.
OPENAI_REGIONS = {
    "name": "data residency",
    "hosts": ["*.api.openai.com"],
    "per_mille": 1_100,
    "models": [f"^gpt-{name}" for name in ("5.4", "5-4", "5.5", "5-5", "5.6", "5-6", "6")],
    "standard": [
        f"^{name}"
        for name in (
            "gpt-3.5", "gpt-35", "gpt-4", "gpt-5.1", "gpt-5.2", "gpt-5.3", "gpt-5-1", "gpt-5-2",
            "gpt-5-3", "gpt-5-chat", "gpt-5-codex", "gpt-5-mini", "gpt-5-nano", "gpt-5-pro",
            "gpt-5-search", "o1", "o3", "o4", "chatgpt-4o", "codex-mini", "text-embedding",
        )
    ] + ["=gpt-5", "#gpt-5-20##-##-##"],
    "source": "https://developers.openai.com/api/docs/guides/data-residency",
    "date": "2026-11-30",
}  # fmt: skip


def fail(text):
    sys.exit(f"extra_prices: {text}")


def check(models):
    """Stops the script if the map has changed its format."""
    if not isinstance(models, dict):
        fail("litellm's price map is not an object")
    if not MODELS_MIN <= len(models) <= MODELS_MAX:
        fail(f"litellm lists {len(models)} models; expected {MODELS_MIN} to {MODELS_MAX}")
    for key in ("litellm_provider", "mode", "source", *RATES, "tiered_pricing"):
        if not any(isinstance(model, dict) and key in model for model in models.values()):
            fail(f"no model of litellm has `{key}`; its format has changed")


def picousd(name, price):
    """Converts dollars for a token exactly; None if it is no whole number of pico-dollars."""
    if not isinstance(price, (int, Decimal)) or isinstance(price, bool):
        fail(f"{name}: the price {price!r} is not a number")
    exact = Decimal(price) * 10**12
    return int(exact) if exact == exact.to_integral_value() and exact >= 0 else None


def known_rates(name, model):
    given = {ours: picousd(name, model[key]) for key, ours in RATES.items() if model.get(key)}
    for side in ("input", "output"):
        given.setdefault(side, 0)
    return given


def by_length(name, model):
    """Returns the price with its tiers: a whole call has the price of its prompt's length."""
    tiers = model.get("tiered_pricing")
    if tiers:
        parts = [(int(tier["range"][0]), known_rates(name, tier)) for tier in tiers]
        parts.sort(key=lambda part: part[0])
        if parts[0][0] != 0:
            fail(f"{name}: the first tier starts at {parts[0][0]}")
    else:
        parts = [(0, known_rates(name, model))]
        found = [LENGTH.fullmatch(key) for key in model]
        for above in sorted({int(match[2]) for match in found if match}):
            longer = {key: model.get(f"{key}_above_{above}k_tokens", model.get(key)) for key in RATES}
            parts.append((above * 1_000, known_rates(name, longer)))
    return parts[0][1] | (
        {"tiers": [{"above": above} | tier for above, tier in parts[1:]]} if parts[1:] else {}
    )


def fault(model):
    """Returns the reason why a model is not taken, or None."""
    costs = {key: value for key, value in model.items() if "cost" in key and value}
    tiers = model.get("tiered_pricing") or []
    for tier in tiers:
        costs |= {key: value for key, value in tier.items() if "cost" in key and value}
    strange = [
        key for key in costs
        if key not in RATES and not IGNORED.search(key) and not LENGTH.fullmatch(key)
    ]  # fmt: skip
    if strange:
        return "also billed by " + ", ".join(sorted(strange))
    # A chat model with one of them, such as a router, bills more than the map says.
    if not SIDES <= costs.keys() and not is_free(model):
        return "no price of prompts and answers"
    return None


def is_free(model):
    """Returns whether the maker's page lists the model as free; a 0 elsewhere can mean unknown."""
    return model.get("litellm_provider") == "zai" and all(model.get(key) == 0 for key in SIDES)


def taken(models, is_known, today):
    """Returns the entries from litellm by our providers, and the reasons for those left out."""
    found, skipped = {}, []
    for theirs, (ours, hosts, prefix, least, pages) in PROVIDERS.items():
        entries = []
        for name, model in models.items():
            is_chat = model.get("mode") in ("chat", "responses")
            if model.get("litellm_provider") != theirs or not name.startswith(prefix) or not is_chat:
                continue
            own = name if prefix == "ft:" else name.removeprefix(prefix)
            if name in UNCERTAIN or (theirs == "mistral" and not own.endswith("-latest")):
                continue
            source = model.get("source", "")
            if not re.search(pages, source) or is_known(ours, own):
                continue
            reason = fault(model)
            price = None if reason else by_length(own, model)
            if price and None in price.values():
                reason = "not a whole number of pico-dollars"
            if reason:
                skipped.append(f"{ours} {own}: {reason}")
                continue
            entry = {"id": own, "prices": [price], "source": source, "date": today}
            if theirs == "openai":
                # The names of fine-tuned models go on.
                entry["match"] = "^" + own.lower()
            entries.append(entry)
        if len(entries) < least:
            fail(f"litellm has {len(entries)} usable prices of {theirs}; expected {least} or more")
        found[ours] = (hosts, sorted(entries, key=lambda entry: entry["id"]))
    return found, skipped


def vertex_regions(models):
    """Returns the surcharge of Vertex AI's regional addresses.

    For models of Anthropic see https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai
    """
    key = "regional_endpoint_uplift_multiplier"
    with_key = {name: model for name, model in models.items() if key in model}
    factors = {model[key] for model in with_key.values()}
    if factors != {Decimal("1.1")}:
        fail(f"`{key}` is {sorted(factors)} and no longer 1.1")
    names = {name.removeprefix("vertex_ai/").split("@")[0] for name in with_key}
    sources = {model["source"] for model in with_key.values() if "cloud.google" in model.get("source", "")}
    return {
        "name": "regional endpoint",
        "hosts": ["*-aiplatform.googleapis.com"],
        "per_mille": 1_100,
        "models": ["^" + name for name in sorted(names)],
        "standard": "~",
        "source": sorted(sources)[0] if sources else fail(f"no source for `{key}`"),
    }


def document(models, version, is_known, today, before):
    """Returns the text of the file; unchanged entries keep the date of `before`, a parsed file."""
    check(models)
    found, skipped = taken(models, is_known, today)
    for ours, entries in CORRECTIONS.items():
        hosts, others = found.get(ours, ([], []))
        corrected = {entry["id"] for entry in entries}
        found[ours] = (hosts, entries + [it for it in others if it["id"] not in corrected])
    vertex = vertex_regions(models) | {"date": today}
    # The price map does not say whether it applies at these addresses of several regions.
    unknown = {"hosts": VERTEX_MULTI_REGIONS, "per_mille": 1_000, "models": [], "standard": []}
    regional = [OPENAI_REGIONS, vertex, vertex | unknown]
    keep_dates(found, regional, before)
    compact = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    about = "Made by assets/make-prices.py: prices that assets/prices.json lacks or has wrong. An entry has its source and the date on which it was read. src/prices/json_format.rs describes the format."
    source = {
        "package": "litellm",
        "version": version,
        "repository": "https://github.com/BerriAI/litellm",
        "license": "MIT, Copyright (c) 2023 Berri AI",
    }
    lines = []
    for ours, (hosts, entries) in sorted(found.items()):
        parts = {"id": ours, "hosts": hosts + HOSTS.get(ours, [])}
        if ours in WITHOUT_CACHE_FALLBACK:
            parts["cache_fallback"] = False
        head = compact(parts)
        lines.append(head[:-1] + ',"models":[\n' + ",\n".join(map(compact, entries)) + "\n]}")
    text = (
        '{"about":' + compact(about) + ',\n"source":' + compact(source)
        + ',\n"regional":[\n' + ",\n".join(map(compact, regional)) + '\n],\n"providers":[\n'
        + ",\n".join(lines) + "\n]}\n"
    )  # fmt: skip
    return text, skipped


def keep_dates(found, regional, before):
    def undated(entry):
        return {key: value for key, value in entry.items() if key != "date"}

    old = {p["id"]: {m["id"]: m for m in p["models"]} for p in before.get("providers", [])}
    for ours, (_, entries) in found.items():
        for entry in entries:
            other = old.get(ours, {}).get(entry["id"])
            if other and undated(other) == undated(entry):
                entry["date"] = other["date"]
    for entry in regional:
        for other in before.get("regional", []):
            if undated(other) == undated(entry):
                entry["date"] = other["date"]


def load(text):
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError as error:
        fail(f"cannot read litellm's price map: {error}")


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) == 2 else fail("usage: extra_prices.py LITELLM_JSON")
    today = datetime.date.today().isoformat()
    with open(path, encoding="utf-8") as file:
        text, skipped = document(load(file.read()), "test", lambda *_: False, today, {})
    print(text, end="")
    for line in skipped:
        print(line, file=sys.stderr)
