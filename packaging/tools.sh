#!/bin/sh
# Prints the directory, outside the repository, where tools are kept that no Debian package brings.
# The test harness asks this script too. As root it must be a place the user `postgres` can enter.
if [ -n "${WALKEEP_TEST_TOOLS:-}" ]; then
    echo "$WALKEEP_TEST_TOOLS"
elif [ "$(id -u)" = 0 ]; then
    echo /var/cache/walkeep-test
else
    echo "${XDG_CACHE_HOME:-$HOME/.cache}/walkeep-test"
fi
