"""`python -m outrider.cli`: the command line of this very interpreter."""

from outrider.cli.app import main

main()
