"""What may leave the device is kept to at the wire; who may answer is said, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider.edge.api import parse
from outrider.edge.api.settings import ApiSettings
from outrider.edge.placement import COUNTED, drawn
from outrider.edge.service import GenerateRequest
from outrider.errors import ConfigError, InvalidRequest
from outrider.options import Address, EdgeOptions
from outrider.partitioner.power.account import Accountant, Traffic
from outrider.partitioner.power.state import Bounds
from outrider.protocol import events
from outrider.protocol.stream import Started
from outrider.testing.proxy import ShapingProxy
from tests.support import ask, cloud, edge, expected, run

HOUSE: dict[str, Any] = {"split": "t=fake", "workers": (Address("127.0.0.1", 1),)}
"""Its committer is a cloud of the test's own."""


def test_nothing_shared_is_nothing_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path) as c,
            ShapingProxy(c.address.host, c.address.port) as proxy,
            edge(Address(proxy.host, proxy.port)) as e,
        ):
            found = await e.answer(ask(share="nothing", max_tokens=20))
            assert found.of(Started)[0].placement == "edge" and not found.done().exact
            assert "share=nothing" in found.done().placement_reason
            assert proxy.statistics().connections == 0
            with pytest.raises(InvalidRequest, match="contradict") as caught:
                await e.answer(ask(share="nothing", placement="cloud"))
            assert caught.value.param == "outrider.share"
            assert proxy.statistics().connections == 0 and not c.opened()
            # The same daemon shares what a request lets it share.
            assert (await e.answer(ask(max_tokens=20))).ids() == expected(ask(max_tokens=20))
            assert proxy.statistics().connections > 0

    run(main())


def test_where_no_model_is_here_nothing_shared_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path) as c,
            ShapingProxy(c.address.host, c.address.port) as proxy,
            edge(Address(proxy.host, proxy.port), draft=None) as e,
        ):
            with pytest.raises(InvalidRequest, match="no model on this device") as caught:
                await e.answer(ask(share="nothing"))
            assert caught.value.param == "outrider.share" and "nothing" in caught.value.why
            assert proxy.statistics().connections == 0 and not c.opened()

    run(main())


def test_a_daemon_that_shares_nothing_knows_no_cloud_and_no_request_opens_it(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, share="nothing", watching=True) as e:
            assert e.daemon.link.peers == [] and e.daemon.ready()
            assert (await e.answer(ask(max_tokens=8))).done().placement == "edge"
            with pytest.raises(InvalidRequest, match="does not share tokens") as caught:
                await e.answer(ask(share="tokens"))
            assert caught.value.param == "outrider.share" and not c.opened()

    run(main())


def test_the_link_itself_refuses_what_may_not_go_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path) as c,
            ShapingProxy(c.address.host, c.address.port) as proxy,
            edge(Address(proxy.host, proxy.port)) as e,
        ):
            (peer,) = e.daemon.link.peers
            message: Any = None
            for share in ("nothing", "hidden"):
                with pytest.raises(InvalidRequest) as caught:
                    await e.daemon.link.open(peer, message, share)
                assert caught.value.param == "outrider.share"
            assert proxy.statistics().connections == 0 and not c.opened()

    run(main())


def test_hidden_is_for_a_committer_whose_ends_are_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path / "a") as far,
            cloud(tmp_path / "b") as near,
            edge(far.address, **HOUSE) as e,
        ):
            e.daemon.link.add(near.address, "split", home=True)
            request = ask(share="hidden", max_tokens=40)
            found = await e.answer(request)
            assert found.ids() == expected(request) and found.done().exact
            assert near.opened() and not far.opened()
            assert found.done().placement == "split"

    run(main())


def test_hidden_without_such_a_committer_is_refused_or_the_small_models(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            with pytest.raises(InvalidRequest, match="no committer here") as caught:
                await e.answer(ask(share="hidden"))
            assert caught.value.param == "outrider.share"
            allowed = await e.answer(ask(share="hidden", small_allowed=True, max_tokens=8))
            assert allowed.done().placement == "edge" and not c.opened()

    run(main())


@pytest.mark.parametrize(
    "given",
    [
        {"share": "nothing", "placement": "cloud"},
        {"share": "hidden", "placement": "draft"},
        {"share": "nothing", **HOUSE},
        {"share": "hidden", "split": "t=fake", "workers": (Address("10.0.0.9", 1),)},
        {"share": "nothing", "draft": "none"},
        {"placement": "split"},
    ],
)
def test_options_that_contradict_are_refused_at_the_start(given: dict[str, Any]) -> None:
    if given.get("workers", HOUSE["workers"]) != HOUSE["workers"]:
        given["workers_ca"] = Path("ca.pem")
    with pytest.raises(ConfigError) as caught:
        EdgeOptions(**given)
    assert caught.value.todo


# --- split, by name ------------------------------------------------------------------------------


def test_split_can_be_asked_for_and_is_decoded_with_speculation(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path / "a") as far,
            cloud(tmp_path / "b") as near,
            edge(far.address, **HOUSE) as e,
        ):
            e.daemon.link.add(near.address, "split", home=True)
            request = ask(placement="split")
            found = await e.answer(request)
            assert found.ids() == expected(request)
            assert near.opened() and not far.opened()
            assert found.of(Started)[0].placement == found.done().placement == "split"
            assert found.done().placement_reason == "split was asked for"
            assert [h for h in e.kinds(events.HintSent) if h.tokens]
            with pytest.raises(InvalidRequest, match="split model of this daemon is t") as caught:
                await e.answer(ask(placement="split", model="other"))
            assert caught.value.param == "model"
            await e.answer(ask(placement="cloud", max_tokens=8))
            assert far.opened()

    run(main())


def test_a_daemon_can_answer_by_its_split_model_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path / "a") as far,
            cloud(tmp_path / "b") as near,
            edge(far.address, placement="split", **HOUSE) as e,
        ):
            e.daemon.link.add(near.address, "split")
            assert (await e.answer(ask(max_tokens=8))).done().placement == "split"
            assert e.daemon.status().placement == "split" and not far.opened()

    run(main())


def test_split_without_a_split_model_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            with pytest.raises(InvalidRequest, match="commits no split model") as caught:
                await e.answer(ask(placement="split"))
            assert caught.value.param == "outrider.placement" and "--split" in caught.value.todo
            assert not c.opened()

    run(main())


# --- the small model, where it will do -----------------------------------------------------------


def test_the_small_model_is_chosen_where_it_may_and_is_cheaper(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            await e.answer(ask(max_tokens=40, placement="draft"))
            governor = e.daemon.governor
            for _ in range(400):
                governor.book.meter(str(c.address), "t").step.note(1, 500.0)
            assert (await e.answer(ask(max_tokens=8))).of(Started)[0].placement != "edge"
            opened = len(c.opened())
            found = await e.answer(ask(max_tokens=30, small_allowed=True))
            assert found.of(Started)[0].placement == "edge" and len(c.opened()) == opened
            told = [d for d in e.kinds(events.Decision) if d.new == "edge"]
            made, after = told
            assert (made.phase, after.phase, after.number) == ("made", "measured", made.number)
            assert made.predicted_gain and made.runner_up in ("cloud", "draft") and made.margin
            assert after.observed_gain is not None and after.ms_after
            required = await e.answer(ask(max_tokens=8, small_allowed=True, exact_required=True))
            assert required.done().exact
            hot = Bounds(draft="off", compute="avoid", reason="82 °C")
            governor.power = lambda: hot
            warm = await e.answer(ask(max_tokens=8, small_allowed=True))
            assert warm.done().placement == "cloud", "power says: compute elsewhere"

    run(main())


def test_joules_that_were_counted_are_what_a_placement_costs() -> None:
    energy = Accountant()
    assert drawn(energy).per_token == () and drawn(energy).counted("draft") is None
    energy.begin("r", "draft")
    energy.worked("r", 2.0, COUNTED)
    energy.committed("r", COUNTED, 1.0, step_s=0.05, rows=1, of_rows=1)
    energy.finish("r", Traffic(tokens=COUNTED, bytes_up=1000, bytes_down=1000))
    found = drawn(energy)
    parts = energy.per_token()["draft"].parts
    assert found.counted("draft") == pytest.approx(parts.device_j + parts.radio_j)
    assert found.counted("cloud") is None and "counted: draft" in found.source
    radio = energy.costs.radio
    assert (found.stream_w, found.tail_s, found.wake_j) == (
        radio.tail_w,
        radio.tail_s,
        radio.wake_j,
    )


def test_requests_over_http_name_what_may_leave_and_what_will_do() -> None:
    def parsed(**ours: Any) -> GenerateRequest:
        body = {"prompt": "ride", "outrider": ours}
        return parse.completion(body, ApiSettings()).requests[0]

    assert (parsed().share, parsed().small_allowed) == (None, False)
    for share in ("tokens", "hidden", "nothing"):
        assert parsed(share=share).share == share
    assert parsed(small_allowed=True).small_allowed
    assert parsed(placement="split").placement == "split"
    for wrong in ({"share": "all"}, {"small_allowed": "yes"}, {"placement": "moon"}, {"shar": 1}):
        with pytest.raises(InvalidRequest) as caught:
            parsed(**wrong)
        assert caught.value.param == f"outrider.{next(iter(wrong))}"
