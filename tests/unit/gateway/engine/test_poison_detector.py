from __future__ import annotations

from gateway.engine.poison_detector import PoisonDetector


class Trial:
    """Runs requests on engines that die of some of them, as the core client does. Tokens are counted in total."""

    def __init__(self, tokens: dict[str, int], poison: dict[str, int], *, relative: bool = False) -> None:
        """`poison`: an engine dies of the making of this token of these requests, counted from 0; `relative`: counted
        from when it was sent to that engine."""
        self.suspicion = PoisonDetector()
        self.tokens = dict(tokens)
        self.poison = poison
        self.relative = relative
        self.deaths = 0
        self.expelled: list[tuple[str, int]] = []
        self.running: dict[str, int] = {}

    def step(self) -> bool:
        """One step of the engine; whether it lives."""
        for name, began in self.running.items():
            made = self.tokens[name] - (began if self.relative else 0)
            if self.poison.get(name) == made:
                self.deaths += 1
                culprit = self.suspicion.record_death({one: self.tokens[one] for one in self.running})
                if culprit is not None:
                    self.expelled.append(culprit)
                    del self.tokens[culprit[0]]
                return False
        for name in self.running:
            self.tokens[name] += 1
        return True

    def send(self, name: str) -> None:
        self.suspicion.record_send(name, self.tokens[name])
        self.running[name] = self.tokens[name]

    def engine(self, *, last: bool = False, steps: int = 20) -> bool:
        """An engine's life with all that are left, to its death or for so many steps; whether it lives."""
        self.running = {}
        at_once, groups = self.suspicion.plan_replay(self.tokens, all_of_them=last)
        for name in at_once:
            self.send(name)
        if at_once and not self.step():
            return False
        for group in groups:
            self.suspicion.begin_trial(group)
            for name in group:
                self.send(name)
            while not all(self.suspicion.has_passed(name, self.tokens[name]) for name in group):
                if not self.step():
                    return False
            self.suspicion.pass_trial()
        return all(self.step() for _ in range(steps))

    def begin(self, steps: int = 20) -> bool:
        """The first engine."""
        self.running = dict.fromkeys(self.tokens, 0)
        return all(self.step() for _ in range(steps))


def until_it_lives(trial: Trial, restarts: int = 10) -> Trial:
    if trial.begin():
        return trial
    for number in range(restarts):
        # The supervisor marks the last restart that it allows.
        if trial.engine(last=number == 2):
            return trial
    raise AssertionError(f"dead after {trial.deaths} deaths; expelled: {trial.expelled}")


def test_a_death_without_a_suspect_sends_all_at_once() -> None:
    suspicion = PoisonDetector()
    assert suspicion.record_death({"a": 3, "b": 5}) is None
    assert suspicion.plan_replay(["a", "b"], all_of_them=False) == (["a", "b"], [])


def test_a_new_request_that_ends_engines_costs_two_of_them() -> None:
    """Of fifty; it comes while the others run."""
    trial = Trial({f"r{number}": 7 for number in range(49)} | {"poison": 0}, {"poison": 0})
    until_it_lives(trial)

    assert trial.expelled == [("poison", 2)]
    assert trial.deaths == 2


def test_also_when_all_of_them_have_just_come() -> None:
    trial = Trial({f"r{number}": 0 for number in range(49)} | {"poison": 0}, {"poison": 0})
    until_it_lives(trial)

    assert trial.expelled == [("poison", 2)]


def test_one_among_three_hundred_new_ones_costs_three() -> None:
    trial = Trial({f"r{number}": 0 for number in range(299)} | {"poison": 0}, {"poison": 0})
    until_it_lives(trial)

    assert trial.expelled == [("poison", 3)]
    assert trial.deaths == 3


def test_one_that_ends_engines_at_a_token_of_its_own_costs_three() -> None:
    """Nothing is known after the first death, when all had tokens; with the tokens it has it ends the next at once."""
    trial = Trial({f"r{number}": 0 for number in range(49)} | {"poison": 0}, {"poison": 5})
    until_it_lives(trial)

    assert trial.expelled == [("poison", 3)]


def test_one_that_goes_on_for_a_while_each_time_is_found_at_the_last_restart() -> None:
    trial = Trial({f"r{number}": 0 for number in range(49)} | {"poison": 0}, {"poison": 5}, relative=True)
    until_it_lives(trial)

    assert trial.expelled == [("poison", 4)]
    assert trial.deaths == 4, "and not a fifth, which would be the end"


def test_two_of_them() -> None:
    trial = Trial({f"r{number}": 7 for number in range(20)} | {"p": 0, "q": 0}, {"p": 0, "q": 0})
    until_it_lives(trial)

    assert [name for name, _ in trial.expelled] == ["p", "q"]
    assert trial.deaths == 3


def test_an_innocent_that_waits_at_every_death_is_tried_and_goes_on() -> None:
    trial = Trial({"long": 7, "new": 0, "p": 0}, {"p": 0})
    until_it_lives(trial)

    assert [name for name, _ in trial.expelled] == ["p"]
    assert trial.tokens.keys() == {"long", "new"}


def test_two_ordinary_deaths_expel_no_request() -> None:
    suspicion = PoisonDetector()
    for _ in range(5):
        assert suspicion.record_death({"a": 3, "b": 0, "c": 0}) is None
        at_once, groups = suspicion.plan_replay(["a", "b", "c"], all_of_them=False)
        assert (at_once, groups) == (["a"], [["b"], ["c"]])
        suspicion.record_send("a", 3)
        for group in groups:
            suspicion.begin_trial(group)
            suspicion.record_send(group[0], 0)
            assert suspicion.has_passed(group[0], 1)
            suspicion.pass_trial()
        assert suspicion.record_death({"a": 4, "b": 1, "c": 1}) is None
        suspicion = PoisonDetector()


def test_a_request_that_has_ended_is_forgotten() -> None:
    suspicion = PoisonDetector()
    suspicion.forget("unknown")
    suspicion.record_death({"a": 0, "b": 0})
    suspicion.forget("a")

    assert suspicion.plan_replay(["a", "b", "new"], all_of_them=False) == ([], [["b"]])
    assert suspicion.has_passed("a", 0)
