"""Data with what is known of its values: built-in, generated, downloaded, or the user's own."""
