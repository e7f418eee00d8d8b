"""What cannot be planted is refused, rule by rule."""

from __future__ import annotations

import pytest

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_what_cannot_be_planted_is_refused():
    kernel = PlantedHead(1, 0, "kernel")

    def refused(message, *heads, **settings):
        given = {"layers": 3, "heads_per_layer": 2} | settings
        with pytest.raises(ModelError, match=message):
            PlantedPlan(heads, **given)

    refused("L3H0 .kernel. is outside its 3 layers of 2 heads", PlantedHead(3, 0, "kernel"))
    refused("L1H0 was given kernel and echo", kernel, PlantedHead(1, 0, "echo"))
    refused("L0H1 .kernel. is in layer 0", PlantedHead(0, 1, "kernel"))
    refused("L0H0 .anti_kernel. is in layer 0", PlantedHead(0, 0, "anti_kernel"), kernel)
    refused("belongs in layer 0; got L1H1", PlantedHead(1, 1, "carrier"))
    refused("one carrier is enough", PlantedHead(0, 0, "carrier"), PlantedHead(0, 1, "carrier"), kernel)
    both = [PlantedHead(0, i, "first_token") for i in (0, 1)]
    refused("layer 0 must have room for the carrier", *both, kernel)
    cancelled, canceller = PlantedHead(2, 0, "cancelled_kernel"), PlantedHead(1, 1, "canceller")
    refused("L2H0 is a cancelled kernel and the canceller is L1H1", kernel, cancelled, canceller)
    refused("got 1 and 0. Plant both, or neither", kernel, cancelled)
    refused("got 0 and 1. Plant both, or neither", kernel, canceller)
    refused("at least 0.1 .*has 0.0", PlantedHead(1, 0, "kernel", bandwidth=0.0))
    refused("has -1.0", PlantedHead(1, 0, "kernel", bandwidth=-1.0))
    refused("no bandwidth; L1H0", PlantedHead(1, 0, "driver", bandwidth=1.0))
    refused("a gain is finite and at least 0", PlantedHead(1, 0, "kernel", gain=-1.0))
    refused("writes no vote; L1H1 has gain 1.0", kernel, PlantedHead(1, 1, "unread_kernel", gain=1.0))
    refused("has label=None", kernel, PlantedHead(1, 1, "word_preference"))
    refused("from 0 to 1; L1H1", kernel, PlantedHead(1, 1, "word_preference", label=2))
    refused("has label=0", PlantedHead(1, 0, "kernel", label=0))
    refused("before L1H1 nothing has written one", kernel, PlantedHead(1, 1, "echo"))
    refused("the model must form an answer", PlantedHead(1, 1, "unread_kernel"))
    refused("2 to 8 labels", kernel, labels=9)
    refused("demos=48 and inputs=48", kernel, demos=48)
    refused("34 tokens, and context=20", kernel, context=20)
    refused("sink=1.0", kernel, sink=1.0)
    refused("d_head=10 with 2 heads", kernel, d_head=10)
