"""Settings that the running daemon takes: placement, fallback, power, clouds, doors."""

from __future__ import annotations

from dataclasses import replace

from outrider.config.keys import LIVE
from outrider.daemon.log import Log
from outrider.daemon.reload import Reloader
from outrider.edge.daemon import Daemon
from outrider.edge.power import PowerWatch, policy_of
from outrider.options import EdgeOptions

CLOUDS = ("clouds", "links", "cloud_ca", "cloud_cert", "cloud_key", "cloud_api_key", "share")


def reloader(given: EdgeOptions, daemon: Daemon, power: PowerWatch) -> Reloader[EdgeOptions]:
    """`given` are the options as they were read. Answers under way go on under those that they
    began with."""

    def apply(old: EdgeOptions, new: EdgeOptions) -> None:
        if any(getattr(old, name) != getattr(new, name) for name in CLOUDS):
            daemon.link.retarget(new)
        daemon.options = replace(new, journal_dir=daemon.options.journal_dir)
        power.options = new
        power.governor.policy = policy_of(new)
        if old.log_level != new.log_level:
            Log.set_level(new.log_level)

    return Reloader(given, LIVE["edge"], apply, daemon.fanout.publish)
