"""Random lives and races: subhosts held to their man pages in whatever order things happen to them.

    world.py     what there is on a target, looked at from outside, and the shell that looks
    model.py     what must be seen of one subhost, after all that has been done to it
    stage.py     four subhosts, how each step goes and how it is judged
    machine.py   random lives: boots, stops, kills and losses, in an order that hypothesis chooses
    races.py     the same commands many times at once, and signals at random moments
    __main__.py  python -m tests.lives: the long forms (make lives)

Nothing of overlay_boot is imported: any implementation can be held to it, on any target of the spec.
Whatever is done to a subhost is a shell command, so that an order that fails can be printed as a
script which does the same again.
"""
