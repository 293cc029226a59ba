"""Recommendations: the cheapest of those that are adequate, and what is said when none is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outrider.errors import ConfigError, Unplannable
from outrider.models import graph
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.profile import recommend as advice
from outrider.partitioner.profile.recommend import Service, catalogue, recommend

MODEL = graph.read("shape:llama-3.1-8b")
SLO = Service(ttft_s=0.5, tpot_s=0.05)


def test_the_cheapest_adequate_device_comes_first() -> None:
    offers = recommend(MODEL, SLO, catalogue())
    adequate = [offer for offer in offers if not offer.lacks]
    assert offers[0].dollars_per_hour == min(offer.dollars_per_hour for offer in adequate)
    assert offers[0].ttft_s <= 0.5 and offers[0].tpot_s <= 0.05
    assert [bool(offer.lacks) for offer in offers] == sorted(bool(o.lacks) for o in offers)
    assert all(offer.source == "estimated" for offer in offers)


def test_more_is_asked_more_is_paid() -> None:
    costs = [
        recommend(MODEL, service, catalogue())[0].dollars_per_hour
        for service in (Service(), SLO, replace(SLO, tpot_s=0.008), replace(SLO, sequences=64))
    ]
    assert costs[0] <= costs[1] < costs[2] and costs[1] < costs[3]


def test_weights_are_read_once_for_all_sequences_and_keys_by_each() -> None:
    (device,) = (one for one in catalogue() if one.name == "l4-24gb")
    one, many = (
        advice.decode_s(MODEL, device, device.rates[0], Service(sequences=n)) for n in (1, 8)
    )
    keys = 8 * (one - advice.decode_s(MODEL, device, device.rates[0], Service(1, 1, 1, 1, 1)))
    assert one < many < 2 * one
    assert many - one == pytest.approx(keys * 7 / 8, rel=0.05)


def test_decoding_is_bound_by_the_bandwidth_of_the_data_sheet() -> None:
    """16 GB of weights over 300 GB/s times the share reached."""
    (device,) = (one for one in catalogue() if one.name == "l4-24gb")
    found = advice.decode_s(MODEL, device, device.rates[0], Service())
    assert found == pytest.approx(15.0e9 / (300e9 * 0.75), rel=0.05)


def test_lossy_weights_are_only_taken_when_asked_for() -> None:
    tight = Service(tpot_s=0.05, precisions=("stored", "q8_0", "q4_k"))
    assert not any(offer.precision == "q4_k" for offer in recommend(MODEL, SLO, catalogue()))
    assert any(offer.precision == "q4_k" for offer in recommend(MODEL, tight, catalogue()))


def test_a_model_that_fits_nowhere_is_told_to_split() -> None:
    with pytest.raises(Unplannable) as caught:
        recommend(graph.read("shape:llama-3.1-405b"), SLO, catalogue())
    assert "memory" in caught.value.constraint and "split" in caught.value.nearest


def test_a_level_that_none_meets_names_the_nearest() -> None:
    with pytest.raises(Unplannable) as caught:
        recommend(MODEL, Service(tpot_s=1e-4), catalogue())
    assert "tpot" in caught.value.constraint and "h200" in caught.value.nearest


def test_ones_own_device_takes_part_with_its_measured_rates() -> None:
    rate = Rate("llama", "q8_0", 1e14, 1e12, bytes_per_weight=1.0625)
    own = DeviceProfile("mine", "desktop", 64 << 30, (rate,))
    offers = recommend(MODEL, SLO, (own, *catalogue()))
    assert (offers[0].device, offers[0].source) == ("mine", "measured")


def test_every_entry_names_its_sources() -> None:
    found = advice.sources()
    assert {one.name for one in catalogue()} == found.keys() and len(found) >= 12
    assert all(len(text) > 40 for text in found.values())
    assert {one.kind for one in catalogue()} >= {"phone", "laptop", "jetson", "desktop", "cloud"}


@pytest.mark.parametrize("field", ["ttft_s", "tpot_s", "sequences", "prompt_tokens"])
def test_services_that_are_none_are_refused(field: str) -> None:
    with pytest.raises(ConfigError):
        Service(**{field: 0})  # type: ignore[arg-type]
