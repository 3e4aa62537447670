# How the commands start on Debian. Isolated (-I): root's PYTHONPATH must not choose what they run.
# Without the module site (-S), a third of Python's start: all that is needed of it is where
# Debian has its modules.
1s|.*|#!/usr/bin/python3 -IS|
s|^import os$|&\nimport sys\nsys.path.append("/usr/lib/python3/dist-packages")|
