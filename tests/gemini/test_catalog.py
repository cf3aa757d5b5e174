"""The built-in catalog as shipped, one's own in front of it, names nobody listed, and what a typo is told."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.gemini.catalog import MODES, Catalog, CatalogError, NeverBelowError, tier_name
from pollux.server.wiring import builtin_catalog, load_catalog
from pollux.settings import Settings, SettingsError
from tools import tables

BUILTIN = builtin_catalog()
CATALOG = Catalog.parse(BUILTIN)
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def test_fallback_chains_as_promised() -> None:
    assert CATALOG.chain("gemini-3.1-pro-preview") == (
        "gemini-3.1-pro-preview",
        "gemini-3-flash-preview",
        "gemini-2.5-flash",
        "gemini-3.1-flash-lite",
    )
    assert CATALOG.chain("gemini-3.1-flash-lite") == ("gemini-3.1-flash-lite",)
    assert CATALOG.chain("gemini-4-argon")[1:3] == ("gemini-3.8-flash", "gemini-3.6-flash")
    assert CATALOG.chain("gemini-4-argon")[-1] == "gemini-3.1-flash-lite"
    assert CATALOG.chain("gemma-3-4b-it")[-1] == "gemini-3.1-flash-lite"


def test_a_fallback_joins_a_chain() -> None:
    assert CATALOG.chain("gemini-3.7-flash") == ("gemini-3.7-flash", *CATALOG.chain("gemini-3.6-flash"))
    assert CATALOG.chain("gemini-2.5-pro") == ("gemini-2.5-pro", "gemini-2.5-flash", "gemini-3.1-flash-lite")


def test_models_that_nothing_can_replace_have_no_fallback() -> None:
    alone = [
        name for name, model in CATALOG.models.items() if model.kind not in ("pro", "flash", "flash_lite", "gemma")
    ]
    assert len(alone) > 15
    assert all(CATALOG.chain(name, mode) == (name,) for name in alone for mode in MODES)


def test_no_model_of_a_chain_shares_the_bucket_of_another() -> None:
    for name in CATALOG.models:
        buckets = [CATALOG.bucket(model) for model in CATALOG.chain(name)]
        assert len(set(buckets)) == len(buckets), name


@pytest.mark.parametrize(
    ("model", "bucket"),
    [
        ("gemini-3.1-pro-preview-customtools", "gemini-3.1-pro"),
        ("gemini-3.7-flash", "gemini-3.8-flash"),
        ("gemini-3.5-flash", "gemini-3.6-flash"),
        ("gemini-embedding-001", "gemini-embedding-1.0"),
        ("gemini-2.5-flash-image", "gemini-2.5-flash-preview-image"),
        ("gemini-2.5-flash", "gemini-2.5-flash"),
        ("gemma-4-26b-a4b-it", "gemma-4-26b"),
        ("gemini-9-flash-preview-05-20", "gemini-9-flash"),  # not listed, from here on
        ("imagen-4.0-generate-001", "imagen-4.0-generate"),
        ("tunedModels/mine-001", "tunedModels/mine-001"),
        ("-preview", "-preview"),
    ],
)
def test_buckets(model: str, bucket: str) -> None:
    assert CATALOG.bucket(model) == bucket


def test_limits_are_those_of_the_bucket() -> None:
    assert CATALOG.limits("gemini-3.7-flash", "free") == {"rpm": 5, "tpm": 250_000, "rpd": 20}
    assert CATALOG.limits("gemini-3.1-pro-preview-customtools", "free") == {"rpm": 0, "tpm": 0, "rpd": 0}
    assert CATALOG.limits("gemini-3.1-pro", "Tier 1") == {"tpm": 1_000_000, "rpd": 250}


def test_what_is_not_known_is_absent() -> None:
    assert CATALOG.limits("gemini-3.8-flash", None) == {}
    assert CATALOG.limits("gemini-3.8-flash", "gold") == {}
    assert CATALOG.limits("gemini-3.8-flash", "tier3") == {}  # and not those of a lower tier: too strict for ever
    assert CATALOG.limits("never-heard-of-it", "free") == {}


def test_limits_handed_out_are_the_callers_own() -> None:
    CATALOG.limits("gemini-3.8-flash", "free")["rpm"] = 99
    assert CATALOG.limits("gemini-3.8-flash", "free")["rpm"] == 5


def test_every_limit_says_who_saw_it_and_when() -> None:
    found = [limits for model in CATALOG.models.values() for limits in model.limits.values()]
    assert len(found) > 20
    for limits in found:
        assert limits.source
        assert re.fullmatch(r"202[5-9](-\d\d){0,2}", limits.seen)


@pytest.mark.parametrize(
    ("text", "tier"),
    [
        ("free", "free"),
        ("paid", "tier1"),
        ("1", "tier1"),
        ("tier-2", "tier2"),
        ("Tier 3", "tier3"),
        ("TIER_1", "tier1"),
    ],
)
def test_spellings_of_tiers(text: str, tier: str) -> None:
    assert tier_name(text) == tier
    assert tier_name(text + "0") is None


def test_aliases_and_prefixes_are_resolved() -> None:
    assert CATALOG.resolve("models/gemini-2.5-flash") == "gemini-2.5-flash"
    assert CATALOG.resolve("models/draft") == CATALOG.aliases["draft"]
    assert CATALOG.resolve("never-heard-of-it") == "never-heard-of-it"
    assert CATALOG.chain("research") == CATALOG.chain("gemini-4-argon")
    assert set(CATALOG.aliases) == {"draft", "standard", "production", "research"}
    assert set(CATALOG.aliases.values()) <= set(CATALOG.models)


def test_modes_keep_one_kind_of_text_model() -> None:
    assert CATALOG.chain("gemini-3.1-pro-preview", "flash_only") == ("gemini-3-flash-preview", "gemini-2.5-flash")
    assert CATALOG.chain("gemini-3.1-pro-preview", "flash_lite_only") == ("gemini-3.1-flash-lite",)
    assert CATALOG.chain("research", "pro_only") == ("gemini-4-argon",)


def test_a_mode_that_leaves_nothing_takes_its_default() -> None:
    assert CATALOG.chain("gemini-2.5-flash", "pro_only") == ("gemini-4-argon",)
    assert CATALOG.chain("draft", "flash_only") == ("gemini-3.8-flash", "gemini-3.6-flash")
    assert CATALOG.chain("gemini-9-pro", "flash_lite_only") == ("gemini-3.5-flash-lite", "gemini-3.1-flash-lite")


def test_modes_leave_other_kinds_alone() -> None:
    for name in ("gemma-3-27b-it", "gemini-embedding-001", "never-heard-of-it"):
        assert CATALOG.chain(name, "pro_only") == CATALOG.chain(name)


@pytest.mark.parametrize(
    ("model", "kind", "generation"),
    [
        ("gemini-9-pro-preview", "pro", 3),
        ("gemini-2.0-flash-001", "flash", 2),
        ("gemini-2.0-flash-lite", "flash_lite", 2),
        ("gemini-9-flash-image", "image", 3),
        ("gemini-2.5-flash-preview-tts", "tts", 2),
        ("gemini-2.5-flash-native-audio-preview-09-2025", "live", 2),
        ("text-embedding-004", "embedding", 3),
        ("veo-9-generate", "video", 3),
        ("gemma-3n-e4b-it", "gemma", 2),
        ("gemini-20-flash", "flash", 3),
        ("gemini-2.5-computer-use-preview-10-2025", None, 2),
        ("tunedModels/flash-mine", None, 3),
        ("prose-1", None, 3),
    ],
)
def test_kind_and_generation_of_names_that_the_catalog_lacks(model: str, kind: str | None, generation: int) -> None:
    assert (CATALOG.kind(model), CATALOG.generation(model)) == (kind, generation)
    assert CATALOG.chain(model) == (model,)


@given(st.text(max_size=40), st.sampled_from(MODES))
def test_any_name_has_a_chain_a_bucket_and_a_generation(name: str, mode: str) -> None:
    assert all(CATALOG.chain(name, mode)) or not name.removeprefix("models/")
    assert CATALOG.bucket(name) or not name
    assert CATALOG.generation(name) in (2, 3)
    assert CATALOG.limits(name, name) == {}


def own(text: str) -> Catalog:
    return Catalog.parse(BUILTIN, text)


def test_ones_own_entry_replaces_fields_and_whole_tiers() -> None:
    catalog = own('[models."gemini-3.8-flash".limits]\n"Tier 1" = { rpm = 7 }\ntier2 = { rpd = 9 }')
    assert catalog.limits("gemini-3.8-flash", "tier1") == {"rpm": 7}  # the built-in tpm is gone
    assert catalog.limits("gemini-3.7-flash", "2") == {"rpd": 9}  # same bucket
    assert catalog.limits("gemini-3.8-flash", "free") == CATALOG.limits("gemini-3.8-flash", "free")
    assert catalog.kind("gemini-3.8-flash") == "flash"
    assert catalog.chain("gemini-3.8-flash") == CATALOG.chain("gemini-3.8-flash")


def test_ones_own_models_chains_aliases_and_defaults() -> None:
    catalog = own(
        """
        [models."gemini-9-flash-preview"]
        limits.paid = { rpm = 3 }
        fallback = "gemini-3.8-flash"
        [chains]
        mine = ["gemini-3.8-flash", "gemini-9-flash-lite"]
        classic = []
        [aliases]
        draft = "gemini-9-flash-lite"
        quick = "draft"
        [defaults]
        flash = "gemini-9-flash-preview"
        """
    )
    model = catalog.models["gemini-9-flash-preview"]
    assert (model.kind, model.generation, model.bucket) == ("flash", 3, "gemini-9-flash")
    assert catalog.limits("gemini-9-flash-preview", "tier1") == {"rpm": 3}
    assert catalog.chain("gemini-9-flash-preview") == ("gemini-9-flash-preview", *catalog.chain("gemini-3.8-flash"))
    assert catalog.chain("gemini-3.8-flash") == ("gemini-3.8-flash", "gemini-9-flash-lite")
    assert catalog.chain("gemini-3.1-pro-preview") == ("gemini-3.1-pro-preview",)
    assert catalog.resolve("quick") == "gemini-9-flash-lite"
    assert catalog.chain("quick", "flash_only")[0] == "gemini-9-flash-preview"
    assert catalog.resolve("research") == CATALOG.resolve("research")


def test_an_alias_may_stand_in_for_a_model_that_is_gone() -> None:
    catalog = own('[aliases]\n"gemini-2.0-flash" = "gemini-3.6-flash"')
    assert catalog.chain("models/gemini-2.0-flash") == CATALOG.chain("gemini-3.6-flash")


def test_an_empty_fallback_takes_the_built_in_one_away() -> None:
    assert own('[models."gemini-2.5-pro"]\nfallback = ""').chain("gemini-2.5-pro") == ("gemini-2.5-pro",)


def test_fallbacks_in_a_circle_end() -> None:
    catalog = own('[models."a-1"]\nfallback = "b-1"\n[models."b-1"]\nfallback = "a-1"')
    assert catalog.chain("a-1") == ("a-1", "b-1")


def test_models_of_one_bucket_get_the_smaller_number() -> None:
    text = '[models."a-1".limits.free]\nrpm = 9\n[models."b-1"]\nbucket = "a-1"\nlimits.free = { rpm = 4, rpd = 1 }'
    assert own(text).limits("a-1", "free") == {"rpm": 4, "rpd": 1}


# --- never below -----------------------------------------------------------------------------------------------------

FLOOR = '[never_below]\ntoday = "gemini-3.6-flash"'


def test_no_request_falls_below_the_floor_of_a_chain() -> None:
    catalog = own(FLOOR)
    assert catalog.chain("gemini-4-argon") == ("gemini-4-argon", "gemini-3.8-flash", "gemini-3.6-flash")
    assert catalog.chain("production") == ("gemini-3.8-flash", "gemini-3.6-flash")
    assert catalog.chain("gemini-3.6-flash") == ("gemini-3.6-flash",)
    assert catalog.chain("gemini-3.1-pro-preview") == CATALOG.chain("gemini-3.1-pro-preview"), "another chain"


@pytest.mark.parametrize("name", ["gemini-4-argon", "production", "gemini-3.6-flash", "gemini-3.5-flash-lite"])
def test_it_tells_what_cut_a_chain(name: str) -> None:
    assert own(FLOOR).floor(name) == "never_below.today of the catalog"
    assert CATALOG.floor(name) is None
    assert Catalog.parse(builtin_catalog(), None, ["gemini-3.6-flash"]).floor(name) == "POLLUX_NEVER_BELOW"


@pytest.mark.parametrize("name", ["gemini-3.1-pro-preview", "gemini-3.1-flash-lite", "no-such"])
def test_a_chain_that_ends_naturally_was_not_cut(name: str) -> None:
    assert own(FLOOR).floor(name) is None


def test_what_is_asked_for_below_the_floor_is_served_and_falls_no_further() -> None:
    assert own(FLOOR).chain("gemini-3.5-flash-lite") == ("gemini-3.5-flash-lite",)


def test_a_floor_holds_for_those_who_join_the_chain() -> None:
    catalog = own(FLOOR)
    assert catalog.chain("gemini-4-carbon") == (
        "gemini-4-carbon",
        "gemini-4-argon",
        "gemini-3.8-flash",
        "gemini-3.6-flash",
    )
    assert catalog.chain("gemini-3.7-flash") == ("gemini-3.7-flash", "gemini-3.6-flash")
    strict = own('[never_below]\ntoday = "gemini-3.8-flash"')
    assert strict.chain("gemini-3.7-flash") == ("gemini-3.7-flash",), "its fallback is below the floor"
    assert strict.chain("gemini-flash-lite-latest") == ("gemini-flash-lite-latest",)


def test_the_last_model_as_floor_changes_nothing_but_its_own_fallback() -> None:
    last = '[never_below]\ntoday = "gemini-3.1-flash-lite"'
    assert own(last).chain("gemini-4-argon") == CATALOG.chain("gemini-4-argon")
    further = '[models."gemini-3.1-flash-lite"]\nfallback = "gemma-3-1b-it"\n'
    assert own(further).chain("gemini-3.1-flash-lite")[1] == "gemma-3-1b-it"
    assert own(further + last).chain("gemini-3.1-flash-lite") == ("gemini-3.1-flash-lite",)


def test_where_chains_share_an_end_each_keeps_its_floor() -> None:
    chains = '[chains]\none = ["a-1", "x-1", "y-1", "z-1"]\ntwo = ["b-1", "x-1", "y-1", "z-1"]\n'
    known = own(chains + '[never_below]\none = "x-1"\ntwo = "y-1"')
    assert known.chain("a-1") == ("a-1", "x-1")
    assert known.chain("b-1") == ("b-1", "x-1", "y-1")
    assert known.chain("x-1") == ("x-1",), "of both chains the stricter one"


def test_modes_stay_above_the_floor_unless_nothing_is_left() -> None:
    catalog = own('[never_below]\nclassic = "gemini-3-flash-preview"')
    assert catalog.chain("gemini-3.1-pro-preview", "flash_only") == ("gemini-3-flash-preview",)
    assert catalog.chain("gemini-3.1-pro-preview", "flash_lite_only")[0] == CATALOG.defaults["flash_lite"]


def test_the_setting_goes_before_the_catalog_and_names_only_models() -> None:
    catalog = Catalog.parse(BUILTIN, FLOOR, ["gemini-3.8-flash", "gemini-2.5-flash"])
    assert catalog.chain("gemini-4-argon") == ("gemini-4-argon", "gemini-3.8-flash")
    assert catalog.chain("gemini-3.1-pro-preview")[-1] == "gemini-2.5-flash"
    everywhere = Catalog.parse(BUILTIN, None, ["gemini-3.1-flash-lite"])
    assert everywhere.chain("gemma-3-4b-it") == CATALOG.chain("gemma-3-4b-it")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["gemini-9-ultra"], "gemini-9-ultra is in no fallback chain; expected gemini-3.1-pro-preview, "),
        (["production"], "production is in no fallback chain; it is an alias, name the model: gemini-3.8-flash"),
        (["gemini-embedding-2"], "gemini-embedding-2 is in no fallback chain"),
        (["gemini-3.8-flash", "gemini-3.6-flash"], "gemini-3.8-flash and gemini-3.6-flash are both in the chain today"),
    ],
)
def test_a_wrong_setting_is_told(names: list[str], says: str) -> None:
    with pytest.raises(NeverBelowError) as caught:
        Catalog.parse(BUILTIN, None, names)
    assert says in str(caught.value)
    with pytest.raises(SettingsError) as told:
        load_catalog(Settings(never_below=tuple(names)))
    assert str(told.value).startswith(f"POLLUX_NEVER_BELOW={','.join(names)}: ")


def test_the_setting_reaches_the_catalog() -> None:
    settings = Settings.from_env({"POLLUX_NEVER_BELOW": "gemini-3.6-flash, gemini-2.5-flash"})
    assert load_catalog(settings).chain("gemini-4-argon")[-1] == "gemini-3.6-flash"
    assert load_catalog(settings).chain("gemini-3.1-pro-preview")[-1] == "gemini-2.5-flash"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[never_below]\nyesterday = "gemini-3.8-flash"',
            "never_below.yesterday: there is no such chain; there are classic,",
        ),
        (
            '[never_below]\ntoday = "gemini-2.5-flash"',
            "never_below.today: gemini-2.5-flash is not in that chain, which has",
        ),
        ('[never_below]\ntoday = "production"', "never_below.today: expected the name of a model, such as"),
        ("[never_below]\ntoday = 5", "never_below.today: expected the name of a model, such as"),
        ('[chains]\nclassic = []\n[never_below]\nclassic = "gemini-2.5-flash"', "which has none"),
        ("[never_bellow]", "did you mean never_below?"),
        ("x = [", "your catalog is not TOML"),
        ("[modles]", "did you mean models?"),
        ("models = 3", "models: expected a table, not 3"),
        ('[models."gemini-x"]\nknid = "pro"', 'models."gemini-x": knid is not known; did you mean kind?'),
        ('[models."gemini-x"]\nkind = "fast"', 'models."gemini-x".kind: expected one of pro, flash'),
        ('[models."gemini-x"]\nkind = ["pro"]', 'models."gemini-x".kind: expected one of'),
        ('[models."gemini-x"]\ngeneration = 1', 'models."gemini-x".generation: expected one of 2, 3, not 1'),
        ('[models."gemini-x"]\ngeneration = true', "not True"),
        ('[models."gemini-x"]\nbucket = ""', 'models."gemini-x".bucket: expected the name of a model'),
        ('[models."models/gemini-x"]', 'models."models/gemini-x": expected the name of a model'),
        ('[models."gemini-x".limits.gold]\nrpm = 1', "limits.gold: expected one of free, tier1"),
        ('[models."gemini-x".limits]\npaid = { rpm = 1 }\ntier1 = { rpm = 1 }', "limits.paid: expected one of"),
        ('[models."gemini-x".limits.free]\nrpm = -1', "limits.free.rpm: expected a whole number, 0 or more, not -1"),
        ('[models."gemini-x".limits.free]\nrpm = true', "limits.free.rpm: expected a whole number"),
        ('[models."gemini-x".limits.free]\nrps = 1', "limits.free: rps is not known; did you mean rpm?"),
        ('[models."gemini-x".limits.free]\nseen = 2026-01-01', "limits.free.seen: expected a text"),
        ('[models."gemini-x"]\nfallback = "draft"', "draft"),
        ('[models."gemini-x"]\nfallback = "gemini-embedding-2"', "gemini-embedding-2 is for embedding"),
        ('[chains]\nmine = ["draft-1", "gemini-3.8-flash", "draft-1"]', "chains.mine: draft-1 is in the chain twice"),
        ('[chains]\nmine = "gemini-x"', "chains.mine: expected a list of models, not 'gemini-x'"),
        ('[chains]\nmine = ["flash"]', "chains.mine: expected the name of a model"),
        ('[chains]\nmine = ["veo-3.1-generate-001", "gemini-x"]', "chains.mine: veo-3.1-generate-001 is for video"),
        ('[chains]\none = ["a-1", "b-1"]\ntwo = ["a-1", "c-1"]', "chains.two: a-1 is followed by other models"),
        ('[chains]\none = ["x-1", "y-1"]\n[aliases]\nx-1 = "z-1"', "x-1 is an alias; name the model, z-1"),
        ('[aliases]\na = "b"\nb = "c"\nc = "a"', "aliases.a goes in a circle: a -> b -> c -> a"),
        ('[aliases]\ndraft = "draft"', "aliases.draft goes in a circle: draft -> draft"),
        ('[aliases]\nquick = "flash"', "aliases.quick: expected the name of a model, such as"),
        ("[aliases]\nquick = 3", "aliases.quick: expected the name of a model, not 3"),
        ('[defaults]\nflash = "gemini-3.1-flash-lite"', "defaults.flash: gemini-3.1-flash-lite is flash_lite"),
        ('[defaults]\nimage = "gemini-x"', "defaults: image is not known"),
    ],
)
def test_errors_name_entry_field_and_reason(text: str, says: str) -> None:
    with pytest.raises(CatalogError) as caught:
        own(text)
    assert says in str(caught.value)


def test_the_page_shows_the_catalog() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert all(table in page for table in tables.models(CATALOG)), "run python -m tools.tables"


def test_the_catalog_stays_small() -> None:
    assert len(BUILTIN.encode()) < 20_000  # it is read at every cold start
