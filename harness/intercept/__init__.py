"""A machine turned into a stream of events for a shadow engine."""
