#!/bin/sh
# python -m spec, whatever the current folder holds (-P).
OVERLAY_BOOT_SPEC_NAME=overlay-boot-spec PYTHONPATH=/usr/share/overlay-boot-spec PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 -P -m spec "$@"
