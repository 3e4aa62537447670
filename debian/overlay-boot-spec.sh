#!/bin/sh
# python -m spec, whatever the current folder holds (-P).
PYTHONPATH=/usr/share/overlay-boot-spec PYTHONDONTWRITEBYTECODE=1 exec python3 -P -m spec "$@"
