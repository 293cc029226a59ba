"""The device's side: drafts ahead, journals, serves the OpenAI API."""
