"""For all tests."""

import signal

# Tests stop commands by ctrl-C, which whatever is started in the background of a script would ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
