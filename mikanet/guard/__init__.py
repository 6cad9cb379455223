"""The guard: what a server does with connections that have not proved anything yet.

``deadlines`` runs many timers of one length on one reactor timer, ``admission`` decides who may come in, ``refusal``
is the one way in which everything that fails is turned away.
"""
