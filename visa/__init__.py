"""One photo in, a real-time photoreal upper-body avatar out.

Every room of the repository imports by this name (`visa.networks`, `visa.losses`, ...); the links beside this file are
the folders of the checkout, and an installed copy holds the folders themselves.
"""
