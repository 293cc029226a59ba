"""The state table: both ends driven in memory, and every way a message can be out of order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outrider.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from outrider.protocol import codec
from outrider.protocol.messages import (
    ChoiceOpen,
    Close,
    Commit,
    Down,
    Finished,
    Heartbeat,
    Hint,
    Open,
    Opened,
    Reason,
    Up,
)
from outrider.protocol.sampling import GREEDY
from outrider.protocol.state import (
    TRANSITIONS,
    Conversation,
    LastFinished,
    Ledger,
    Role,
    State,
)

OPEN = Open(
    session=bytes(16),
    fence=1,
    prompt=(1,),
    choices=(ChoiceOpen(0), ChoiceOpen(3)),
    sampling=GREEDY,
    seed=0,
    max_tokens=100,
)
OPENED = Opened(
    1, "m", "a", "b", "c", exact=True, context=99, ahead=64, heartbeat_ms=1000, resumed=False
)
MESSAGES: dict[tuple[Role, type], Up | Down] = {
    (Role.EDGE, Open): OPEN,
    (Role.EDGE, Hint): Hint(1, 0, 0, 0, (5,)),
    (Role.EDGE, Heartbeat): Heartbeat(1),
    (Role.EDGE, Close): Close(),
    (Role.CLOUD, Opened): OPENED,
    (Role.CLOUD, Commit): Commit(1, 0, 0, (7,)),
    (Role.CLOUD, Finished): Finished(1, 0, Reason.STOP, 1),
    (Role.CLOUD, LastFinished): Finished(1, 3, Reason.STOP, 1),
    (Role.CLOUD, Heartbeat): Heartbeat(1),
}
# What the other end would send: never legal from this one.
FOREIGN: list[tuple[Role, Up | Down]] = [
    *((Role.CLOUD, message) for message in (OPEN, Hint(1, 0, 0, 0, ()), Close())),
    *(
        (Role.EDGE, message)
        for message in (OPENED, Commit(1, 0, 0, (7,)), Finished(1, 0, Reason.STOP, 1))
    ),
]


def other(role: Role) -> Role:
    return Role.CLOUD if role is Role.EDGE else Role.EDGE


def at(role: Role, state: State, kind: type) -> Conversation:
    """An end in that state; one choice is left where the last is to finish."""
    left = {3} if kind is LastFinished else {0, 3}
    return Conversation(role, state, frozenset({0, 3}), left)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("sender", "kind"), MESSAGES, ids=lambda x: x.__name__ if isinstance(x, type) else x.name
)
def test_every_pair_is_as_the_table_says(state: State, sender: Role, kind: type) -> None:
    """Legal: both ends move alike. Illegal: the sender's bug at both, and nothing moves."""
    message = MESSAGES[sender, kind]
    ends = at(sender, state, kind), at(other(sender), state, kind)
    target = TRANSITIONS[state].get((sender, kind))
    if target is not None:
        ends[0].send(message)
        ends[1].receive(message)
        assert ends[0].state is ends[1].state is target
        return
    before = [(end.state, end.opened, set(end.open_choices)) for end in ends]
    with pytest.raises(LocalProtocolError):
        ends[0].send(message)
    with pytest.raises(RemoteProtocolError):
        ends[1].receive(message)
    assert before == [(end.state, end.opened, end.open_choices) for end in ends]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(("sender", "message"), FOREIGN, ids=str)
def test_an_end_never_sends_the_other_ends_messages(
    state: State, sender: Role, message: Up | Down
) -> None:
    with pytest.raises(LocalProtocolError):
        at(sender, state, Finished).send(message)
    with pytest.raises(RemoteProtocolError):
        at(other(sender), state, Finished).receive(message)


@pytest.mark.parametrize(
    "message",
    [Hint(1, 1, 0, 0, ()), Commit(1, 9, 0, (7,)), Finished(1, 200, Reason.STOP, 1)],
    ids=str,
)
def test_a_choice_that_was_not_opened_is_refused(message: Up | Down) -> None:
    sender = Role.EDGE if isinstance(message, Hint) else Role.CLOUD
    with pytest.raises(LocalProtocolError):
        at(sender, State.LIVE, Finished).send(message)
    with pytest.raises(RemoteProtocolError):
        at(other(sender), State.LIVE, Finished).receive(message)


def test_a_choice_ends_once() -> None:
    cloud = at(Role.CLOUD, State.LIVE, Finished)
    cloud.send(Finished(1, 0, Reason.STOP, 1))
    states = [cloud.state]
    with pytest.raises(LocalProtocolError):
        cloud.send(Finished(1, 0, Reason.STOP, 1))
    states.append(cloud.state)
    cloud.send(Finished(1, 3, Reason.LENGTH, 1))
    assert [*states, cloud.state] == [State.LIVE, State.LIVE, State.ENDED]


# --- both ends, with messages under way --------------------------------------------------------

MOST_UNDER_WAY = 2
Ends = tuple[State, State, tuple[type, ...], tuple[type, ...]]


def ways_on(ends: Ends) -> list[Ends]:
    """All that can happen next: an end sends what its table allows, or takes what is under way."""
    edge, cloud, up, down = ends
    found = []
    for (sender, kind), target in TRANSITIONS[edge].items():
        if sender is Role.EDGE and len(up) < MOST_UNDER_WAY:
            found.append((target, cloud, (*up, kind), down))
    for (sender, kind), target in TRANSITIONS[cloud].items():
        if sender is Role.CLOUD and len(down) < MOST_UNDER_WAY:
            found.append((edge, target, up, (*down, kind)))
    if up:
        found.append((edge, TRANSITIONS[cloud][Role.EDGE, up[0]], up[1:], down))
    if down:
        found.append((TRANSITIONS[edge][Role.CLOUD, down[0]], cloud, up, down[1:]))
    return found


def test_no_crossing_of_legal_messages_is_ever_illegal() -> None:
    """Every reachable pair of states with up to two messages each way: a lookup would fail."""
    pending: deque[Ends] = deque([(State.IDLE, State.IDLE, (), ())])
    reached = {pending[0]}
    while pending:
        for ends in ways_on(pending.popleft()):
            if ends not in reached:
                reached.add(ends)
                pending.append(ends)
    assert {ends[0] for ends in reached} == {ends[1] for ends in reached} == set(State)
    # With nothing under way the ends agree.
    assert all(edge is cloud for edge, cloud, up, down in reached if not up and not down)


def test_the_end_is_final() -> None:
    assert set(TRANSITIONS[State.ENDED].values()) == {State.ENDED}
    assert not any(sender is Role.CLOUD for sender, _ in TRANSITIONS[State.ENDED])


def test_every_state_can_end() -> None:
    for state in State:
        ways, seen = {state}, set[State]()
        while ways:
            now = ways.pop()
            seen.add(now)
            ways |= set(TRANSITIONS[now].values()) - seen
        assert State.ENDED in seen


# --- through the codec -------------------------------------------------------------------------


@dataclass
class End:
    """One end as a program is: a conversation, and a ledger for each choice."""

    role: Role
    conversation: Conversation = field(init=False)
    ledgers: dict[int, Ledger] = field(default_factory=dict)
    said: int = 0

    def __post_init__(self) -> None:
        self.conversation = Conversation(self.role)

    def note(self, message: Up | Down) -> None:
        match message:
            case Open():
                self.ledgers = {
                    each.choice: Ledger(message.fence, list(each.committed))
                    for each in message.choices
                }
            case Commit():
                ledger = self.ledgers[message.choice]
                ledger.commit(message.position, message.tokens, message.fence)
            case Finished():
                self.ledgers[message.choice].finish(message)


class Pair:
    """Both ends and the bytes between them."""

    def __init__(self) -> None:
        self.edge, self.cloud = End(Role.EDGE), End(Role.CLOUD)
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()

    def send_up(self, message: Up) -> None:
        self.edge.conversation.send(message)
        self.edge.note(message)
        self.up.append(codec.encode_up(message, OPEN.slots))

    def send_down(self, message: Down) -> None:
        self.cloud.conversation.send(message)
        self.cloud.note(message)
        self.down.append(codec.encode_down(message, OPEN.slots, None))

    def deliver_up(self) -> None:
        message = codec.decode_up(self.up.popleft(), OPEN.slots)
        self.cloud.conversation.receive(message)
        if isinstance(message, Open):
            self.cloud.note(message)

    def deliver_down(self) -> None:
        message = codec.decode_down(self.down.popleft(), OPEN.slots, None)
        self.edge.conversation.receive(message)
        self.edge.note(message)

    def deliver(self) -> None:
        while self.up:
            self.deliver_up()
        while self.down:
            self.deliver_down()

    def agree(self) -> bool:
        ends = self.edge, self.cloud
        tokens = [{n: led.tokens for n, led in end.ledgers.items()} for end in ends]
        return ends[0].conversation.state is ends[1].conversation.state and tokens[0] == tokens[1]


def test_a_whole_session_in_memory() -> None:
    pair = Pair()
    up: list[Up] = [OPEN]
    down: list[Down] = [
        Heartbeat(5),
        OPENED,
        Commit(1, 0, 0, (7, 8)),
        Commit(1, 3, 0, (9,)),
        Commit(1, 0, 2, (10, 11, 12), hint_rows=3, from_hints=2),
        Finished(1, 3, Reason.STOP, 1),
        Finished(1, 0, Reason.LENGTH, 5, discarded=1),
    ]
    for message in up:
        pair.send_up(message)
        pair.deliver()
        assert pair.agree()
    for answer in down:
        pair.send_down(answer)
        pair.deliver()
        assert pair.agree()
        if isinstance(answer, Commit):
            pair.send_up(Hint(1, answer.choice, answer.position, answer.position, (1, 2)))
            pair.deliver()
            assert pair.agree()
    assert pair.edge.conversation.state is State.ENDED
    assert pair.edge.ledgers[0].tokens == [7, 8, 10, 11, 12]
    assert pair.edge.ledgers[0].finished is Reason.LENGTH
    assert pair.edge.ledgers[0].discarded == 1


class AnyOrder(RuleBasedStateMachine):
    """Both ends talk as they please over links of any delay; no end ever blames the other."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @precondition(lambda self: self.pair.up)
    @rule()
    def deliver_up(self) -> None:
        self.pair.deliver_up()

    @precondition(lambda self: self.pair.down)
    @rule()
    def deliver_down(self) -> None:
        self.pair.deliver_down()

    @rule(which=st.integers(0, 3), tokens=st.lists(st.integers(0, 9), max_size=8))
    def edge_sends(self, which: int, tokens: list[int]) -> None:
        seen = len(self.pair.edge.ledgers[0].tokens) if self.pair.edge.ledgers else 0
        hint = Hint(1, 0, seen, seen, tuple(tokens))
        self._try(Role.EDGE, (OPEN, hint, Heartbeat(3), Close())[which])

    @rule(
        which=st.integers(0, 3),
        choice=st.sampled_from([0, 3]),
        tokens=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    )
    def cloud_sends(self, which: int, choice: int, tokens: list[int]) -> None:
        ledger = self.pair.cloud.ledgers.get(choice, Ledger(1))
        if which == 1 and ledger.finished is not None:
            return
        count = len(ledger.tokens)
        commit = Commit(1, choice, count, tuple(tokens))
        end = Finished(1, choice, Reason.STOP, count)
        self._try(Role.CLOUD, (OPENED, commit, end, Heartbeat(4))[which])

    def _try(self, role: Role, message: Up | Down) -> None:
        """An end that may not send now keeps silent."""
        try:
            if role is Role.EDGE:
                assert isinstance(message, Open | Hint | Close | Heartbeat)
                self.pair.send_up(message)
            else:
                assert isinstance(message, Opened | Commit | Finished | Heartbeat)
                self.pair.send_down(message)
        except LocalProtocolError:
            return

    @invariant()
    def edge_holds_a_prefix(self) -> None:
        for choice, ledger in self.pair.edge.ledgers.items():
            if self.pair.cloud.ledgers:
                whole = self.pair.cloud.ledgers[choice].tokens
                assert ledger.tokens == whole[: len(ledger.tokens)]

    def teardown(self) -> None:
        self.pair.deliver()
        assert self.pair.agree()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_blame_is_a_protocol_error() -> None:
    for sender, state in product(Role, State):
        with pytest.raises(ProtocolError):
            Conversation(sender, state).send(Commit(1, 77, 0, (1,)))
