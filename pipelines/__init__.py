"""From image-level labels to pseudo-masks: the library behind the ``ssr`` command. It never prints and never reads argv."""
