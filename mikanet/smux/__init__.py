"""smux: many streams over one byte stream. Wire format, session, filter."""
