"""One config by three ways, all its problems at once, and the hash that names it."""

import json
import types

import pytest
from pydantic import Field, ValidationError

from phalanx.cli.common import parse_set
from phalanx.config import AttackConfig, DefenseConfig, RunConfig, UseAttack, UseDefense
from phalanx.errors import ConfigError
from phalanx.hookspecs import hookimpl
from phalanx.registry import Registry
from phalanx.runfile import config_error_from_validation, config_hash, merge, read_run
from phalanx.specs import ComponentSpec, Epsilon, Kind, Linf


class PlainConfig(DefenseConfig):
    members: int = 3
    eps: Epsilon = "8/255"
    attack: UseAttack = Field(default={"use": "poke"})


class WrapperConfig(DefenseConfig):
    base: UseDefense


class PokeConfig(AttackConfig):
    steps: int = 1


def component(kind, name, config):
    return ComponentSpec(
        kind=kind, name=name, factory="a:B", config=f"{__name__}:{config}", summary="One."
    )


COMPONENTS = (
    component(Kind.DEFENSE, "plain", "PlainConfig"),
    component(Kind.DEFENSE, "wrapper", "WrapperConfig"),
    component(Kind.ATTACK, "poke", "PokeConfig"),
)


@pytest.fixture
def registry():
    plugin = types.ModuleType("phalanx_mine")
    plugin.phalanx_components = hookimpl(lambda: COMPONENTS)
    return Registry([plugin], discover=False)


@pytest.fixture
def read(registry):
    def call(source, *assignments):
        return read_run(source, overrides=parse_set(assignments), registry=registry)

    return call


@pytest.fixture
def hashed(read, registry):
    return lambda *given: config_hash(read(*given), registry=registry)


def problems(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return list(caught.value.problems)


FILE = """
seed = 3
[data]
use = "mnist"
[defense]
use = "plain"
[defense.params]
members = 5
[training]
epochs = 2
optimizer = { name = "adam", lr = 0.001 }
"""
TABLE = {
    "seed": 3,
    "data": {"use": "mnist"},
    "defense": {"use": "plain", "params": {"members": 5}},
    "training": {"epochs": 2, "optimizer": {"name": "adam", "lr": 0.001}},
}


class TestThreeWays:
    def test_one_config(self, tmp_path, read, registry):
        path = tmp_path / "run.toml"
        path.write_text(FILE)
        saved = tmp_path / "config.json"
        saved.write_text(json.dumps(TABLE))
        context = {"registry": registry}
        given = [
            read(path),
            read(str(saved)),
            read(TABLE),
            read(RunConfig.model_validate(TABLE, context=context)),
            read(
                {"defense": "plain"},
                "seed=3",
                "data.use=mnist",
                "defense.params.members=5",
                "training.epochs=2",
                "training.optimizer.name=adam",
                "training.optimizer.lr=0.001",
            ),
        ]
        assert all(run == given[0] for run in given)
        assert len({config_hash(run, registry=registry) for run in given}) == 1

    def test_a_dumped_config_reads_back_to_the_same(self, read, registry):
        run = read(TABLE)
        again = read(run.model_dump(mode="json"))
        assert again == run
        assert config_hash(again, registry=registry) == config_hash(run, registry=registry)

    def test_a_config_object_within_a_mapping(self, read):
        table = {"defense": {"use": "plain", "params": PlainConfig.model_construct(members=5)}}
        table["defense"]["params"].__pydantic_fields_set__.clear()
        table["defense"]["params"].__pydantic_fields_set__.add("members")
        assert read(table).defense.params.members == 5

    def test_installed_components_by_default(self):
        assert read_run({"defense": "pdd"}).defense.params.members == 3

    def test_overrides_go_over_the_file(self, read):
        run = read(TABLE, "training.optimizer.lr=0.1")
        assert (run.training.optimizer.lr, run.training.optimizer.name) == (0.1, "adam")

    def test_merge(self):
        assert merge({"a": "x", "b": [1]}, {"a": {"params": {"k": 1}}, "b": [2]}) == {
            "a": {"use": "x", "params": {"k": 1}},
            "b": [2],
        }


class TestThreats:
    def test_absent_is_the_data_sets(self, read):
        run = read({"defense": "plain", "data": {"use": "mnist"}})
        assert run.defense.params.attack.params.threat == Linf(0.3)

    def test_evaluation_uses_its_own(self, read):
        run = read(
            {
                "defense": "plain",
                "evaluation": {
                    "threat": "linf:0.2",
                    "attacks": ["poke", {"use": "poke", "params": {"threat": "l2:1"}}],
                },
            }
        )
        assert [str(one.params.threat) for one in run.evaluation.attacks] == ["linf:0.2", "l2:1"]
        assert run.defense.params.attack.params.threat == Linf(0.1)
        assert str(run.evaluation.threat) == "linf:0.2"

    def test_evaluation_without_its_own(self, read):
        run = read({"defense": "plain", "evaluation": {"attacks": ["poke"]}})
        assert run.evaluation.attacks[0].params.threat == Linf(0.1)
        assert run.evaluation.threat is None


class TestProblems:
    def test_all_at_once_with_file_and_path(self, tmp_path, read):
        path = tmp_path / "run.toml"
        path.write_text(
            'seed = -1\n[data]\nuse = "mnits"\n[defense]\nuse = "wrapper"\n'
            '[defense.params.base]\nuse = "plain"\nparams = { memberz = 3, eps = "9" }\n'
            '[evaluation]\nthreat = "linf"\nattacks = ["pokes"]\n'
        )
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: 6 problems\n"
            "  data.use: unknown data set 'mnits'; did you mean 'mnist'? known: digits, mnist, "
            "fashion_mnist, cifar10, cifar100, svhn, folder\n"
            "  seed: should be greater than or equal to 0, found -1\n"
            "  defense.params.base.params.eps: should be less than or equal to 1, found '9'\n"
            "  defense.params.base.params.memberz: unknown key; did you mean 'members'? allowed: "
            "members, eps, attack\n"
            "  evaluation.threat: a threat is written as norm:epsilon with norm linf, l2 or l1, "
            "such as linf:8/255; found 'linf'\n"
            "  evaluation.attacks.0.use: unknown attack 'pokes'; did you mean 'poke'?"
        )
        assert caught.value.exit_code == 2

    def test_unknown_defense(self, read):
        assert problems(read, {"defense": "plane"}) == [
            "defense.use: unknown defense 'plane'; did you mean 'plain'?"
        ]

    def test_nothing(self, read):
        assert problems(read, {}) == ["defense: this key is required"]

    def test_unknown_top_level_key(self, read):
        assert problems(read, {"defense": "plain", "evalution": {}}) == [
            "evalution: unknown key; did you mean 'evaluation'? allowed: seed, data, defense, "
            "init, training, evaluation"
        ]

    @pytest.mark.parametrize("part", ["data", "training", "evaluation"])
    def test_a_table_is_needed(self, read, part):
        assert problems(read, {"defense": "plain", part: 3}) == [
            f"{part}: should be a table of keys, found 3"
        ]

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("none.toml", None, "there is no such file"),
            ("bad.toml", "seed = ?\n", "is not TOML: Invalid value (at line 1, column 8)"),
            ("bad.json", "{", "is not JSON: Expecting property name enclosed in double quotes"),
            ("list.json", "[1]", "is not a table of keys"),
        ],
    )
    def test_files(self, tmp_path, read, name, content, problem):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: 1 problem\n  {problem}")

    def test_folder(self, tmp_path, read):
        assert problems(read, tmp_path) == ["is a folder, not a run file"]

    def test_validation_error_of_a_part(self):
        with pytest.raises(ValidationError) as caught:
            PokeConfig(stepz=1)
        error = config_error_from_validation(caught.value, "command", prefix="attack.params")
        assert str(error) == (
            "command: 1 problem\n  attack.params.stepz: unknown key; did you mean 'steps'? "
            "allowed: threat, steps"
        )


BASE = {"defense": "plain"}


class TestInit:
    @pytest.mark.parametrize(
        ("written", "found"),
        [
            ('"a.pth"', "{folder}/a.pth"),
            ('"../a.pth"', "{folder}/../a.pth"),
            ('["timm", "/b.pth"]', ("timm", "/b.pth")),
            ('"~/a.pth"', "~/a.pth"),
        ],
    )
    def test_files_are_looked_for_from_the_run_file(self, tmp_path, read, written, found):
        path = tmp_path / "run.toml"
        path.write_text(f'[init]\nfrom = {written}\n[defense]\nuse = "plain"\n')
        expected = found.format(folder=tmp_path) if isinstance(found, str) else found
        assert read(path).init.from_ == expected

    def test_on_the_command_line_they_are_left_as_they_are(self, tmp_path, read):
        path = tmp_path / "run.toml"
        path.write_text('[init]\nfrom = "a.pth"\n[defense]\nuse = "plain"\n')
        assert read(path, "init.from=b.pth").init.from_ == "b.pth"
        assert read(BASE, "init.from=b.pth").init.from_ == "b.pth"

    def test_it_is_written_and_read_back(self, tmp_path, read):
        run = read(BASE | {"init": {"from": [tmp_path / "a.pth", "timm"], "sha256": ["ab", ""]}})
        dumped = run.model_dump(mode="json")
        assert dumped["init"] == {"from": [str(tmp_path / "a.pth"), "timm"], "sha256": ["ab", ""]}
        assert read(dumped) == run

    @pytest.mark.parametrize(
        ("init", "problem"),
        [
            (
                {"from": []},
                "init.from: should be 'timm', a checkpoint file, a run folder, or a list of "
                "these, found []",
            ),
            (
                {"form": "x", "from": "y"},
                "init.form: unknown key; did you mean 'from'? allowed: from, sha256",
            ),
            (
                {"from": "x", "sha256": ["a", "b"]},
                "init: sha256 has 2 entries for 1 sources in 'from'; leave it out, or give one "
                "for each ('' for timm)",
            ),
        ],
    )
    def test_refusals(self, read, init, problem):
        assert problems(read, BASE | {"init": init}) == [problem]

    def test_the_hash_is_that_of_the_content_not_of_the_place(self, hashed):
        def init(source, *digests):
            return BASE | {"init": {"from": source, "sha256": list(digests)}}

        assert hashed(init("/here/a.pth", "ab")) == hashed(init("there/b.pth", "ab"))
        assert hashed(init("/here/a.pth", "ab")) != hashed(init("/here/a.pth", "cd"))
        assert hashed(init(["x", "x"], "ab", "cd")) != hashed(init(["x", "x"], "cd", "ab"))
        assert len({hashed(BASE), hashed(init("timm")), hashed(init("x", "ab"))}) == 3
        assert hashed(BASE | {"init": None}) == hashed(BASE)


def test_an_unknown_protocol_is_told_when_the_file_is_read(read):
    assert problems(read, BASE | {"evaluation": {"protocol": "quik"}}) == [
        "evaluation.protocol: unknown protocol 'quik'; did you mean 'quick'? known: adaptive, "
        "quick, standard, union"
    ]


def test_hashes_of_installed_components_are_fixed():
    """Run folders that were written before a key existed stay valid."""
    assert config_hash(read_run({"defense": "pdd"})) == "fa745c838c6112c2"
    training = {"epochs": 3, "adversarial": {}}
    config = {"defense": "clm", "data": {"use": "mnist", "limit": 10}, "training": training}
    assert config_hash(read_run(config)) == "0b5facae4bb55dfe"


class TestHash:
    def test_form(self, hashed):
        assert len(hashed(BASE)) == 16
        assert int(hashed(BASE), 16) >= 0

    @pytest.mark.parametrize(
        "spelled_out",
        [
            ["seed=0"],
            ["data.use=digits", "data.validation=0.0"],
            ["defense.params.members=3"],
            ['defense.params.eps="8/255"'],
            ["defense.params.attack=poke"],
            ["defense.params.attack.use=poke", "defense.params.attack.params.steps=1"],
            ["defense.params.attack.params.threat=linf:0.1", "defense.params.attack.use=poke"],
            ["training.precision=float32"],
        ],
    )
    def test_a_spelled_out_default_changes_nothing(self, hashed, spelled_out):
        assert hashed(BASE, *spelled_out) == hashed(BASE)

    @pytest.mark.parametrize(
        "beside", [["training.threads=2"], ["evaluation.limit=5"], ["evaluation.threat=l2:1"]]
    )
    def test_what_does_not_enter(self, hashed, beside):
        assert hashed(BASE, *beside) == hashed(BASE)

    @pytest.mark.parametrize(
        "changed",
        [
            ["seed=1"],
            ["data.use=mnist"],
            ["data.limit=10"],
            ["defense.params.members=4"],
            ["defense.params.attack.use=poke", "defense.params.attack.params.threat=linf:0.2"],
            ["training.epochs=1"],
            ["training.optimizer.name=sgd", "training.optimizer.lr=0.1"],
            ["training.adversarial={}"],
        ],
    )
    def test_what_enters(self, hashed, changed):
        assert hashed(BASE, *changed) != hashed(BASE)

    def test_order_of_keys_does_not_count_but_of_patterns_does(self, hashed):
        def phases(*patterns):
            return BASE | {"training": {"phases": {one: {"epochs": 2} for one in patterns}}}

        reverse = {"params": {"eps": 0.5, "members": 2}, "use": "plain"}
        forward = {"use": "plain", "params": {"members": 2, "eps": 0.5}}
        assert hashed({"defense": reverse}) == hashed({"defense": forward})
        assert hashed(phases("a*", "ab")) != hashed(phases("ab", "a*"))

    def test_is_fixed(self, hashed):
        """A changed value would orphan every run folder that there is."""
        assert hashed(BASE) == "aab83df5555ae0eb"
