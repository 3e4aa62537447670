#!/bin/sh
# python -m spec, whatever the current folder holds (-P).
PYTHONPATH=/usr/share/overlay-boot-spec PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 -P -m spec "$@"
