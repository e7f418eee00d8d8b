"""A study: is there a kernel regression in pretrained models, and which heads carry it?"""
