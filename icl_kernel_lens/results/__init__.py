"""The frozen objects a user holds: values with unit, control and provenance."""
