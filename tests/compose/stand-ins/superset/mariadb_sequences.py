"""MariaDB writes NOCYCLE where Superset's migration, made for MySQL, which has no sequences, writes NO CYCLE."""

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateSequence


@compiles(CreateSequence, "mysql")
def create_sequence(element, compiler, **options):
    return compiler.visit_create_sequence(element, **options).replace(" NO CYCLE", " NOCYCLE")
