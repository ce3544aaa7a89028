"""Is a small bundle still the same model? Its decoders and towers answer side by side."""
