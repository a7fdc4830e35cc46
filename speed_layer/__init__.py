"""Speed layer: the stream that scores events, and the model service that it calls."""
