"""The words that cross a wire or a hall: requests, events, configuration, errors."""
