"""What depends on the whole screen: its size, and whether it keeps to ASCII."""

CSS = """
Screen { background: $background; }
#pages { height: 1fr; }

.ascii Panel { border: ascii $rule; }
.ascii Banner, .ascii Tabs, .ascii Story, .ascii Footer { border: none; }
.ascii Lines { border: ascii $cloud; }

.-tall Overview { grid-rows: 13 1fr 8; }
.-tall Split Strip { height: 9; }
.-tall Split Timeline { display: block; height: 13; }
.-tall Requests Tokens { height: 9; }
.-tall Requests.detail Tokens { height: 1fr; }
"""
