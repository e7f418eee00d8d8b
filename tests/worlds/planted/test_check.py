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


def test_decoys_and_doses_that_cannot_be_planted_are_refused():
    kernel = PlantedHead(1, 0, "kernel")

    def refused(message, *heads, **settings):
        given = {"layers": 3, "heads_per_layer": 2} | settings
        with pytest.raises(ModelError, match=message):
            PlantedPlan(heads, **given)

    refused("L0H0 .salience. is in layer 0", PlantedHead(0, 0, "salience"), kernel)
    refused("L0H0 .addressing. is in layer 0", PlantedHead(0, 0, "addressing"), kernel, trailing=True)
    refused("L0H0 .driver. is in layer 0", PlantedHead(0, 0, "driver", swing=1.0), trailing=True)
    refused(
        "the label carrier belongs in layer 0", kernel, PlantedHead(1, 1, "label_carrier"), separator=True
    )
    refused(
        "room for the carrier and misbinder.* 1 of its 2 heads",
        PlantedHead(0, 0, "first_token"),
        PlantedHead(1, 1, "misbound"),
    )
    refused("at least 1.0 .*has 0.5", PlantedHead(1, 0, "recency", bandwidth=0.5))
    refused("at least 0.35 .*has 0.2", PlantedHead(1, 0, "addressing", bandwidth=0.2))
    for share in (0.0, 1.1):
        refused(f"has share={share}", PlantedHead(1, 0, "kernel", share=share))
    refused("swing=21", PlantedHead(1, 0, "kernel", swing=21.0))
    refused("uniform has no sink; L1H1", kernel, PlantedHead(1, 1, "uniform", share=0.5))
    refused("echo_share=1.5", PlantedHead(1, 0, "kernel", echo_share=1.5))
    refused("echo_share=0.5", kernel, PlantedHead(1, 1, "salience", echo_share=0.5))
    refused("no other role, has a pull", PlantedHead(1, 0, "kernel", pull=1.0))
    refused("harmful key head must leave", kernel, PlantedHead(1, 1, "harmful_key", share=1.0))
    refused("harmful key head must leave", kernel, PlantedHead(1, 1, "harmful_key"), sink=0.0)
    blind = PlantedHead(1, 1, "label_blind", share=1.0)
    refused("label blind head must leave", kernel, blind, trailing=True)
    PlantedPlan((kernel, blind), layers=3, heads_per_layer=2)
    refused("Give separator=True", PlantedHead(1, 0, "after_kernel"), heads_per_layer=4)
    early, mover = PlantedHead(1, 1, "early_kernel"), PlantedHead(2, 0, "mover")
    refused("Give trailing=True", early, mover)
    refused("early kernels need exactly one mover.* got 1 and 0", kernel, early, trailing=True)
    refused("got 0 and 1. Plant both", kernel, mover, trailing=True)
    late = PlantedHead(2, 1, "early_kernel")
    refused("L2H1 is an early kernel and the mover is L2H0", kernel, late, mover, trailing=True)
    opposed = PlantedHead(1, 0, "opposed_kernel", gain=1.0)
    refused("Plant them in pairs", opposed, direct=1.0)
    refused("Plant them in pairs", opposed, PlantedHead(1, 1, "opposing_kernel", gain=2.0), direct=1.0)
    refused("the model must form an answer", opposed, PlantedHead(1, 1, "opposing_kernel", gain=1.0))
    refused("mlp_noise=2", kernel, mlp_noise=2.0)
    refused("Got loudness=0.9", kernel, loudness=0.9)
    refused("norm=False", kernel, loudness=0.5, norm=False, form="rotary")
    refused("form='plain'", kernel, loudness=0.5)
    taken = PlantedHead(1, 1, "cancelled_kernel"), PlantedHead(2, 0, "canceller")
    refused("no canceller can read", kernel, *taken, loudness=0.5, form="rotary")
    refused("before L0H0 nothing", PlantedHead(0, 0, "echo"), direct=1.0, trailing=True)
    refused("at least 20 dimensions", kernel, d_head=18, heads_per_layer=8, trailing=True, labels=8)
